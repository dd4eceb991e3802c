"""An SSH server that takes Kerberos tickets, and then behaves as the name of the user says.

Prints `hostkey TYPE BASE64` and `port N`.
"""
import asyncio
import sys

import asyncssh
from asyncssh import auth
from asyncssh.packet import String, UInt32

RESPONSE, TOKEN, ERROR = 60, 61, 64
KERBEROS = bytes.fromhex('06092a864886f712010202')
SPNEGO = bytes.fromhex('06062b0601050502')
RED = '\x1b[31mRED\x1b[0m\x07\x1b]0;title\x07'


class Ticket(auth.ServerAuth):
    @classmethod
    def supported(cls, conn):
        return True

    async def _start(self, _):
        mode = self._username
        if mode == 'mechanism':
            self.send_packet(RESPONSE, String(SPNEGO))
        elif mode == 'early':
            self.send_packet(TOKEN, String(b'early'))
        elif mode == 'flood':
            for _ in range(2000):
                self.send_packet(TOKEN, String(bytes(60000)))
        elif mode == 'complains':
            for _ in range(2000):
                self.send_packet(ERROR, UInt32(1), UInt32(2), String(RED), String(''))
        else:
            self.send_packet(RESPONSE, String(KERBEROS))

    def _process_token(self, *_):
        mode = self._username
        if mode == 'again':
            self.send_packet(RESPONSE, String(KERBEROS))
        elif mode == 'huge':
            self.send_packet(TOKEN, String(bytes(200000)))
        elif mode == 'refuses':
            self.send_packet(ERROR, UInt32(1), UInt32(2), String(RED * 1000), String(''))
            self.send_failure()
        else:
            self.send_packet(TOKEN, String(b'garbage'))

    _packet_handlers = {TOKEN: _process_token}


class Server(asyncssh.SSHServer):
    def begin_auth(self, _):
        return True


async def main():
    auth._server_auth_handlers[b'gssapi-with-mic'] = Ticket
    key = asyncssh.generate_private_key('ssh-ed25519')
    server = await asyncssh.create_server(Server, '127.0.0.1', 0, server_host_keys=[key])
    print('hostkey', *key.export_public_key().decode().split()[:2], flush=True)
    print('port', server.sockets[0].getsockname()[1], flush=True)
    open(sys.argv[2], 'wb').close()
    # The end of the input is the end.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
