"""An SSH server that lets everybody in and then behaves as its argument says.

Prints `port N`, `hostkey TYPE BASE64`, and what the client made of it. Everything that it receives in channels that
run commands goes to the file that is its second argument.
"""
import asyncio
import os
import re
import sys

import asyncssh
from asyncssh.packet import Byte, String, UInt32

MODE, RECORD = sys.argv[1:3]
OPEN, DATA, EXTENDED, CLOSE, REQUEST, DISCONNECT = 90, 94, 95, 97, 98, 1
RED = '\x1b[31mRED\x1b[0m\x07\x1b]0;title\x07'
record = open(RECORD, 'wb', buffering=0)
connections = []


def say(*words):
    print(*words, flush=True)


class Unasked:
    """A channel that nobody asked for; asyncssh only has to know its number."""

    def __init__(self, conn, kind):
        self.conn, self.kind, self.peer = conn, kind, None
        self.done = asyncio.get_running_loop().create_future()
        self.number = conn.add_channel(self)

    def open(self, *extra):
        number, room = UInt32(self.number), UInt32(1 << 20)
        self.conn.send_packet(OPEN, String(self.kind), number, room, UInt32(32768), *extra)
        return self.done

    def _end(self, what):
        if not self.done.done():
            self.done.set_result(what)

    def process_open_confirmation(self, peer, *_):
        self.peer = peer
        self._end('OPENED')

    def process_open_failure(self, code, *_):
        self._end(f'refused {code}')

    def process_connection_close(self, _):
        self._end('gone')

    def process_packet(self, *_):
        return True

    def log_received_packet(self, *_):
        pass


def tcp(address, port):
    return String(address), UInt32(port), String('127.0.0.1'), UInt32(40000)


async def unasked_kinds(conn):
    for kind, extra in [
        ('session', ()),
        ('x11', (String('127.0.0.1'), UInt32(6000))),
        ('auth-agent@openssh.com', ()),
        ('direct-tcpip', tcp('169.254.169.254', 80)),
        ('forwarded-tcpip', tcp('10.0.0.5', 22)),
        ('forwarded-streamlocal@openssh.com', (String('/tmp/x'), String(''))),
        ('tun@openssh.com', (UInt32(1), UInt32(0x7FFFFFFF))),
        ('nonsense', ()),
    ]:
        say('kind', kind, await Unasked(conn, kind).open(*extra))


async def flood(conn, port):
    """Two thousand connections to the port that was asked for; each accepted one says much and reads nothing."""
    results = [Unasked(conn, 'forwarded-tcpip') for _ in range(2000)]
    opened = [channel.open(*tcp('127.0.0.1', port)) for channel in results]
    answers = await asyncio.gather(*opened)
    for channel in results:
        if channel.peer is not None:
            for _ in range(8):
                conn.send_packet(DATA, UInt32(channel.peer), String(b'x' * 30000))
    say('flood', answers.count('OPENED'), 'opened', len(answers) - answers.count('OPENED'), 'refused')


class Server(asyncssh.SSHServer):
    def connection_made(self, conn):
        self.conn = conn
        connections.append(conn)

    async def begin_auth(self, username):
        if MODE == 'auth-hangs':
            await asyncio.sleep(1000)
        if MODE == 'banner':
            for n in range(200):
                self.conn.send_auth_banner(f'{n} {RED}\r\n' + 'b' * 4000)
        if MODE == 'disconnect':
            self.conn.send_packet(DISCONNECT, UInt32(2), String(f'go away {RED}\r\nand more'), String(''))
            self.conn.close()
            await asyncio.sleep(1000)
        return False

    async def server_requested(self, host, port):
        if MODE == 'forward-hangs':
            await asyncio.sleep(1000)
        if MODE == 'closes':
            self.conn._force_close(None)
        # Nobody listens: the client must not believe us.
        if MODE == 'no-listener':
            return asyncssh.SSHListener()
        return True


async def copy(reader, writer, into=None):
    while data := await reader.read(65536):
        if into:
            into.write(data)
        writer.write(data)
        await writer.drain()


async def real(process):
    """Runs the command as sshd would."""
    child = await asyncio.create_subprocess_exec(
        os.environ['SHELL'], '-c', process.command, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=os.environ['HOME'])

    async def stdin():
        try:
            await copy(process.stdin, child.stdin, record)
            child.stdin.close()
        except (OSError, asyncssh.Error):
            child.stdin.close()
    feeding = asyncio.ensure_future(stdin())
    await asyncio.gather(copy(child.stdout, process.stdout), copy(child.stderr, process.stderr))
    status = await child.wait()
    feeding.cancel()
    return status


def ready(command):
    """The line that the helper would say, and its nonce: this server has read what it was sent."""
    nonce = ''.join(re.search(r'a=(\w+); b=(\w+);', command).groups())
    return nonce, f'\nbroker-{nonce} ready\n'


async def liar(process, facts, answers=()):
    """Says what our helper would say, but it is not true."""
    nonce, line = ready(process.command)
    process.stdout.write(line.encode())
    lines = [await process.stdin.readline()]
    process.stdout.write(''.join(f'{nonce} 0 {fact}\n' for fact in facts).encode())
    while line := await process.stdin.readline():
        lines.append(line)
        record.write(line)
        number, *command = line.decode().split()
        for answer in dict(answers).get(command[0], ['ok']) if command else []:
            answer = answer.replace('PORT', command[-1])
            process.stdout.write(f'{nonce} {number} {answer}\n'.encode())


FACTS = ['row uid 4242', 'row system Linux', 'row host h', 'row shell /bin/sh', 'row home /', 'row parent 1 1',
         'row sockets yes', 'ok']


async def helper(process):
    nonce, line = ready(process.command)
    out = process.stdout
    if MODE == 'exec-hangs':
        await asyncio.sleep(1000)
    elif MODE == 'garbage':
        out.write(RED.encode() + os.urandom(2000) + b'\n')
    elif MODE == 'megabyte':
        out.write((RED.encode() + b'x' * 60 + b'\n') * 20000)
    elif MODE == 'echo':
        # A ForceCommand that shows what was asked for, as some menus do.
        out.write(f'you wanted: {process.command}\n{process.command}\n'.encode())
        async for line in process.stdin:
            record.write(line)
            out.write(line)
    elif MODE == 'other-nonce':
        out.write(f'\nbroker-{"0" * 32} ready\nx{line[1:]}'.encode())
        await copy(process.stdin, record_only())
    elif MODE == 'megabyte-later':
        out.write(line.encode() + b'y' * (1 << 20))
        await copy(process.stdin, record_only())
    elif MODE == 'odd-uid':
        await liar(process, ['row uid ' + RED] + FACTS[1:])
    elif MODE == 'others-listener':
        await liar(process, FACTS, [('listen', ['row 0100007F:PORT 666', 'ok'])])
    elif MODE == 'wide-listener':
        await liar(process, FACTS, [('listen', ['row 00000000:1030 4242', 'ok'])])
    elif MODE == 'odd-listener':
        await liar(process, FACTS, [('listen', ['row ' + RED, 'ok'])])
    elif MODE == 'odd-directory':
        await liar(process, FACTS, [('listen', ['row 0100007F:1030 4242', 'ok']),
                                    ('dir', ['ok shm /tmp/$(touch${IFS}/tmp/pwned);' + RED])])
    elif MODE == 'unasked-line':
        await liar(process, FACTS + [f'row {n}' for n in range(10)])
    else:
        return await real(process)
    return 0


class record_only:
    def write(self, data):
        record.write(data)

    async def drain(self):
        pass


async def job(process):
    """The user's command ends in a way that no command does."""
    conn, chan = process.channel.get_connection(), process.channel
    peer = UInt32(chan._send_chan)
    status = lambda n: conn.send_packet(REQUEST, peer, String('exit-status'), b'\0', UInt32(n))
    process.stdout.write(b'out\n')
    if MODE == 'status-huge':
        status(0xFFFFFFFF)
    elif MODE == 'status-256':
        status(256)
    elif MODE == 'status-twice':
        status(3)
        status(0)
    elif MODE == 'status-none':
        pass
    elif MODE == 'signal-odd':
        conn.send_packet(REQUEST, peer, String('exit-signal'), b'\0', String('NO' + RED), b'\1', String(RED), String(''))
    elif MODE == 'signal-kill':
        conn.send_packet(REQUEST, peer, String('exit-signal'), b'\0', String('KILL'), b'\0', String(''), String(''))
    elif MODE == 'extended-odd':
        conn.send_packet(EXTENDED, peer, UInt32(77), String(b'odd\n'))
        status(4)
    elif MODE == 'lost':
        conn._force_close(None)
        return
    conn.send_packet(CLOSE, peer)


async def handle(process):
    try:
        command = process.command or ''
        say('command', command[:60].split(';')[0].replace('\n', ' '))
        if 'a=' in command and ' ready' in command:
            if MODE == 'kinds':
                asyncio.ensure_future(unasked_kinds(process.channel.get_connection()))
            status = await helper(process)
        elif MODE == 'flood':
            status = await real(process)
        else:
            return await job(process)
        process.exit(status if status >= 0 else 128 - status)
    except (asyncssh.Error, OSError) as error:
        say('ended', type(error).__name__)


async def main():
    key = asyncssh.generate_private_key('ssh-ed25519')
    server = await asyncssh.create_server(
        Server, '127.0.0.1', 0, server_host_keys=[key], process_factory=handle, encoding=None, allow_pty=False)
    say('hostkey', *key.export_public_key().decode().split()[:2])
    say('port', server.sockets[0].getsockname()[1])
    loop = asyncio.get_running_loop()
    # `flood PORT` on stdin, and the end of it is the end.
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await flood(connections[-1], int(line.split()[1]))


asyncio.run(main())
