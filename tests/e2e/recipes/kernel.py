# A person at a notebook: starts their server and a kernel through the hub, then runs each line of stdin as a cell.
# Prints one line of JSON for each: what it printed, or how it failed.
import asyncio
import json
import os
import sys
import uuid

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

HUB = "http://127.0.0.1:8000"
user = sys.argv[1]
headers = {"Authorization": "token " + os.environ["TEST_TOKEN"]}


async def ask(method, path, body=None):
    request = HTTPRequest(
        HUB + path, method, headers, body=body, allow_nonstandard_methods=True, request_timeout=60
    )
    answer = await AsyncHTTPClient().fetch(request)
    return json.loads(answer.body or b"null")


async def cell(socket, code):
    message = {
        "header": {"msg_id": uuid.uuid4().hex, "username": user, "session": "test", "msg_type": "execute_request",
                   "version": "5.3"},
        "parent_header": {}, "metadata": {}, "channel": "shell",
        "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False,
                    "stop_on_error": False},
    }
    await socket.write_message(json.dumps(message))
    printed = ""
    while True:
        said = json.loads(await socket.read_message())
        if said["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        if said["msg_type"] == "stream":
            printed += said["content"]["text"]
        elif said["msg_type"] == "error":
            return {"failed": said["content"]["ename"] + ": " + said["content"]["evalue"]}
        elif said["msg_type"] == "status" and said["content"]["execution_state"] == "idle":
            return {"printed": printed}


async def main():
    await ask("POST", f"/hub/api/users/{user}/server", "{}")
    while not (await ask("GET", f"/hub/api/users/{user}"))["servers"].get("", {}).get("ready"):
        await asyncio.sleep(0.1)
    kernel = (await ask("POST", f"/user/{user}/api/kernels", "{}"))["id"]
    url = HUB.replace("http", "ws", 1) + f"/user/{user}/api/kernels/{kernel}/channels"
    socket = await websocket_connect(HTTPRequest(url, headers=headers, request_timeout=60))
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            print(json.dumps(await cell(socket, json.loads(line))), flush=True)
        except Exception as e:
            print(json.dumps({"broken": repr(e)}), flush=True)
            raise
    await ask("DELETE", f"/user/{user}/api/kernels/{kernel}")
    await ask("DELETE", f"/hub/api/users/{user}/server")


asyncio.run(main())
