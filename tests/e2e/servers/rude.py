"""An SSH server that knows the protocol and breaks it as its argument says, before, while and after somebody logs in.

Prints `hostkey TYPE BASE64` and `port N`. Everything that it receives in channels goes to the file that is its second
argument; the helper of a command is refused, and every other command ends with status 0.
"""
import asyncio
import sys

import asyncssh
from asyncssh.packet import Boolean, NameList, String, UInt32

MODE, RECORD = sys.argv[1:3]
DISCONNECT, IGNORE, UNIMPLEMENTED, DEBUG, SERVICE_ACCEPT, EXT_INFO, NEWKEYS = 1, 2, 3, 4, 6, 7, 21
FAILURE, SUCCESS, BANNER, INFO_REQUEST = 51, 52, 53, 60
GLOBAL, OPEN, OPEN_FAILURE, ADJUST, DATA, EXTENDED, EOF, CLOSE, REQUEST = 80, 90, 92, 93, 94, 95, 96, 97, 98
RED = '\x1b[31mRED\x1b[0m\x07\x1b]0;title\x07\u202e'
HUGE = RED + 'x' * 200_000
MOST = 0xFFFFFFFF
record = open(RECORD, 'wb', buffering=0)


def debug(text):
    return DEBUG, Boolean(True), String(text), String('')


# What is sent before anybody is let in.
EARLY = {
    'disconnect-huge': [(DISCONNECT, UInt32(MOST), String(HUGE), String(''))],
    'disconnect-bytes': [(DISCONNECT, UInt32(11), String(b'\xff\xfe\x1b[2J'), String(''))],
    'disconnect-short': [(DISCONNECT, UInt32(2), UInt32(MOST))],
    'debug-flood': [debug(RED * 200)] * 5000,
    'ignore-flood': [(IGNORE, String(b'i' * 30_000))] * 2000,
    'unimplemented-flood': [(UNIMPLEMENTED, UInt32(n)) for n in range(5000)],
    'ext-info-short': [(EXT_INFO, UInt32(3), String('server-sig-algs'))],
    'ext-info-count': [(EXT_INFO, UInt32(MOST))],
    'ext-info-junk': [(EXT_INFO, UInt32(2), String('server-sig-algs'), String(b'\xff,,,' * 5000), String(RED),
                       String(HUGE))],
    'ext-info-flood': [(EXT_INFO, UInt32(1), String('server-sig-algs'), String('rsa-sha2-512'))] * 3000,
    'unknown-message': [(200, String(HUGE))],
    'newkeys-again': [(NEWKEYS,)],
    'service-again': [(SERVICE_ACCEPT, String('ssh-userauth'))] * 10,
    'failure-names': [(FAILURE, NameList([(RED + str(n)).encode() for n in range(500)]), Boolean(False))],
    'failure-short': [(FAILURE, UInt32(MOST))],
    'failure-flood': [(FAILURE, NameList([b'publickey', b'password']), Boolean(False))] * 3000,
    'banner-bytes': [(BANNER, String(b'\xff\xfe\x1b[2J'), String(''))],
    'banner-huge': [(BANNER, String(HUGE), String(''))] * 20,
    'info-unasked': [(INFO_REQUEST, String(RED), String(RED), String(''), UInt32(1), String(RED), Boolean(True))],
    'info-count': [(INFO_REQUEST, String(''), String(''), String(''), UInt32(MOST))],
    'success-unasked': [(SUCCESS,)] * 3,
    'empty-packet': [(IGNORE,)],
}
PROMPTS = {
    'prompts-many': ('', '', [(RED + str(n), True) for n in range(3000)]),
    'prompts-huge': (HUGE, HUGE, [(HUGE, False)]),
    'prompts-none': ('', 'wait', []),
    'prompts-endless': ('', '', [('Again: ', False)]),
    'prompts-meanwhile': ('', '', [('Think: ', False)]),
}


def late(peer):
    """What is sent on the channel `peer` of a command that runs, and beside it."""
    return {
        'global-flood': [(GLOBAL, String(f'x{n}@example.org'), Boolean(True)) for n in range(5000)],
        'global-huge': [(GLOBAL, String(HUGE), Boolean(True))] * 20,
        'hostkeys-flood': [(GLOBAL, String('hostkeys-00@openssh.com'), Boolean(False),
                            *[String(b'k' * 30)] * 5000)] * 10,
        'window-overflow': [(ADJUST, peer, UInt32(MOST))] * 1000,
        'unknown-channels': [(DATA, UInt32(n), String(b'd' * 1000)) for n in range(1000, 6000)],
        'close-unknown': [(CLOSE, UInt32(n)) for n in range(1000, 4000)],
        'extended-flood': [(EXTENDED, peer, UInt32(MOST), String(b'e' * 30_000))] * 200,
        'requests-odd': [(REQUEST, peer, String(RED + str(n)), Boolean(True)) for n in range(3000)],
        'opens-flood': [(OPEN, String('session'), UInt32(n), UInt32(1 << 20), UInt32(32768)) for n in range(3000)],
        'opens-odd': [(OPEN, String(HUGE), UInt32(1), UInt32(1), UInt32(1))],
        'open-confirmed-twice': [(91, peer, UInt32(7), UInt32(MOST), UInt32(0))] * 10,
        'data-after-eof': [(EOF, peer), (DATA, peer, String(b'late' * 5000))],
        'length-lies': [(DATA, peer, UInt32(MOST))],
        'rekeys': [],
    }.get(MODE, [])


class Server(asyncssh.SSHServer):
    def connection_made(self, conn):
        self.conn = conn

    async def begin_auth(self, username):
        if MODE == 'auth-drips':
            while True:
                self.conn.send_packet(IGNORE, String(b'.'))
                await asyncio.sleep(0.2)
        for kind, *parts in EARLY.get(MODE, []):
            self.conn.send_packet(kind, *parts)
        # Whoever was only shouted at is let in.
        return MODE in PROMPTS or MODE in ('failure-loop', 'password-expired')

    def kbdint_auth_supported(self):
        return MODE in PROMPTS

    def talk_meanwhile(self):
        """What is sent while a person thinks about what was asked."""
        for _ in range(6000 if MODE == 'prompts-meanwhile' else 0):
            self.conn.send_packet(INFO_REQUEST, String('n' * 30_000), String(''), String(''), UInt32(0))

    def get_kbdint_challenge(self, *_):
        asyncio.get_running_loop().call_later(0.2, self.talk_meanwhile)
        name, instructions, prompts = PROMPTS[MODE]
        return name, instructions, '', prompts

    def validate_kbdint_response(self, *_):
        return self.get_kbdint_challenge()

    def password_auth_supported(self):
        return MODE == 'password-expired'

    def validate_password(self, *_):
        raise asyncssh.PasswordChangeRequired('It is old. ' + RED)

    def public_key_auth_supported(self):
        return MODE == 'failure-loop'

    def validate_public_key(self, *_):
        # Right, and right again, and never enough.
        self.conn.send_packet(FAILURE, NameList([b'publickey', b'keyboard-interactive']), Boolean(True))
        return False

    def session_requested(self):
        if MODE == 'open-failure-huge':
            raise asyncssh.ChannelOpenError(MOST, HUGE)
        return asyncssh.SSHServerProcess(handle, None, 3, False)


async def handle(process):
    conn, chan = process.channel.get_connection(), process.channel
    try:
        for kind, *parts in late(UInt32(chan._send_chan)):
            conn.send_packet(kind, *parts)
        if MODE == 'rekeys':
            # As often as its own limit of bytes says.
            for _ in range(100):
                conn.send_packet(IGNORE, String(b'i' * 1000))
                await asyncio.sleep(0.01)
        if MODE == 'rekey-storm':
            for _ in range(200):
                conn._kex = None
                conn._send_kexinit()
        process.exit(0)
    except (asyncssh.Error, OSError, AttributeError) as error:
        print('ended', type(error).__name__, error, flush=True)


async def main():
    key = asyncssh.generate_private_key('ssh-ed25519')
    server = await asyncssh.create_server(
        Server, '127.0.0.1', 0, server_host_keys=[key], encoding=None, allow_pty=False,
        rekey_bytes=5000 if MODE == 'rekeys' else 1 << 30)
    print('hostkey', *key.export_public_key().decode().split()[:2], flush=True)
    print('port', server.sockets[0].getsockname()[1], flush=True)
    # The end of stdin is the end.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
