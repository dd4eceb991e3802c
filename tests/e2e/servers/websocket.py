"""An SSH server behind a WebSocket, as JupyterHub serves it; and the client that a ProxyCommand runs.

  websocket.py serve PORT    prints `port N`; binary messages of /user/ada/sshd/ go to 127.0.0.1:PORT
  websocket.py connect URL   standard input and output; the token is in HUB_TOKEN
"""
import asyncio
import os
import sys

import websockets.asyncio.client
import websockets.asyncio.server

TOKEN, PATH = 'hub-token', '/user/ada/sshd/'


async def copy(read, write):
    while data := await read():
        await write(data)


async def serve(port):
    async def bridge(socket):
        reader, writer = await asyncio.open_connection('127.0.0.1', port)

        async def write(data):
            writer.write(data)
            await writer.drain()

        async def receive():
            try:
                return await socket.recv()
            except websockets.ConnectionClosed:
                return b''

        ways = [asyncio.create_task(copy(receive, write)),
                asyncio.create_task(copy(lambda: reader.read(32768), socket.send))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        writer.close()

    def check(connection, request):
        if request.path != PATH or request.headers.get('Authorization') != f'token {TOKEN}':
            return connection.respond(403, 'log in to the hub first\n')

    async with websockets.asyncio.server.serve(bridge, '127.0.0.1', 0, process_request=check) as server:
        print('port', server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


async def connect(url):
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    headers = {'Authorization': f'token {os.environ["HUB_TOKEN"]}'}
    async with websockets.asyncio.client.connect(url, additional_headers=headers, proxy=None) as socket:
        async def show():
            async for data in socket:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

        ways = [asyncio.create_task(copy(lambda: stdin.read(32768), socket.send)), asyncio.create_task(show())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()


try:
    asyncio.run(serve(int(sys.argv[2])) if sys.argv[1] == 'serve' else connect(sys.argv[2]))
except websockets.InvalidStatus as refused:
    sys.exit(f'{refused}: {refused.response.body.decode()}')
