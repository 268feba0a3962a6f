"""The websockets package against the gateway: ws_plain.py URL."""

import asyncio
import json
import sys

import websockets

url = sys.argv[1]


async def plain():
    async with websockets.connect(url, additional_headers={"x-session-id": "ws-py"}) as socket:
        assert socket.response.headers["x-session-id"] == "ws-py"
        assert socket.subprotocol is None
        await socket.send("hello")
        assert (await socket.recv()).startswith("You said: hello\n")
        await socket.send("again")
        assert (await socket.recv()).startswith("You said: again\n")
        pong = await socket.ping()
        await asyncio.wait_for(pong, 5)

    async with websockets.connect(url) as socket:
        assert socket.response.headers["x-session-id"], "a fresh session has an id"

    async with websockets.connect(f"{url}?stream=true&session=ws-py") as socket:
        await socket.send("streamed")
        frames = []
        while frame := await socket.recv():
            frames.append(frame)
        assert len(frames) > 3 and "".join(frames).startswith("You said: streamed\n"), frames

    async with websockets.connect(url) as socket:
        await socket.send(b"binary")
        try:
            await socket.recv()
            raise AssertionError("binary frames are refused")
        except websockets.ConnectionClosedError as error:
            assert error.rcvd.code == 1003, error


async def in_json():
    async with websockets.connect(url, subprotocols=["chatgateway.v1"]) as socket:
        assert socket.subprotocol == "chatgateway.v1"
        hello = json.loads(await socket.recv())
        assert hello["type"] == "hello" and hello["protocol"] == "chatgateway.v1"
        await socket.send(json.dumps({"type": "send", "session": "ws-json", "turn": "py-turn", "text": "hello"}))
        seen = []
        while not seen or seen[-1]["type"] != "done":
            seen.append(json.loads(await socket.recv()))
        # The receipt belongs to the request; the entries are the log's, in its order.
        assert sum(frame["type"] == "accepted" for frame in seen) == 1
        seen = [frame for frame in seen if frame["type"] != "accepted"]
        kinds = [frame["type"] for frame in seen]
        assert kinds[0] == "turn" and set(kinds[1:-1]) == {"delta"}, kinds
        await socket.send("{not json")
        error = json.loads(await socket.recv())
        assert error["type"] == "error" and error["code"] == "invalid_request"
        await socket.send(json.dumps({"type": "ping", "t": 17}))
        assert json.loads(await socket.recv()) == {"type": "pong", "t": 17}
    middle = seen[3]["id"]
    async with websockets.connect(url, subprotocols=["chatgateway.v1"]) as socket:
        await socket.recv()
        await socket.send(json.dumps({"type": "resume", "session": "ws-json", "after": middle}))
        resumed = json.loads(await socket.recv())
        assert resumed["type"] == "resumed" and resumed["recovered"] is True, resumed
        rest = [json.loads(await socket.recv()) for _ in seen[4:]]
        assert rest == seen[4:], "nothing missing or doubled"

    try:
        await websockets.connect(url, subprotocols=["unknown.v9"])
        raise AssertionError("unknown subprotocols are refused")
    except websockets.InvalidStatus as error:
        assert error.response.status_code == 400, error


async def main():
    async with asyncio.timeout(50):
        await plain()
        print("ws-plain: websockets (Python): plain text")
        await in_json()
        print("ws-plain: websockets (Python): JSON frames")


asyncio.run(main())
