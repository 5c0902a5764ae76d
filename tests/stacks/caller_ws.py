"""A WebSocket caller on PyPI's websockets, over HTTP/1.1; the jobs are those of caller_ws.mjs (see there)."""

import asyncio
import json
import ssl
import struct
import sys
import time
import urllib.request
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

JOB = json.loads(sys.argv[1])


def now():
    return time.monotonic() * 1000


def dial(path="/socket"):
    base = urlsplit(JOB["base"])
    more = {}
    if base.scheme == "https":
        more["ssl"] = ssl.create_default_context(cafile=JOB["ca"])
        more["server_hostname"] = base.hostname
    headers = {"X-Case": JOB["id"]}
    if JOB.get("token"):
        headers["Authorization"] = f"Bearer {JOB['token']}"
    scheme = "wss" if base.scheme == "https" else "ws"
    return connect(
        f"{scheme}://{base.netloc}{path}",
        host="127.0.0.1",
        port=base.port,
        subprotocols=["chat.v9", "chat.v1"],
        additional_headers=headers,
        max_size=8 << 20,
        proxy=None,
        **more,
    )


async def until_seen(what, probe):
    address = f"http://{JOB['control']}/seen/{JOB['id']}"
    end = now() + 10_000
    while True:
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(address).read())
        seen = json.loads(text)
        if probe(seen):
            return seen
        if now() > end:
            raise TimeoutError(f"the upstream noted: {what}")
        await asyncio.sleep(0.005)


async def closing(peer):
    try:
        while True:
            await peer.recv()
    except ConnectionClosed:
        return {"code": peer.close_code, "reason": peer.close_reason}


async def talk():
    wrong = []
    binary = bytes(i * 7 & 0xFF for i in range(300_000))
    samples = ["plain", "Grüße, 世界 🌍", "", "x" * 70_000, b"\0\1\xff", binary]
    async with dial() as peer:
        for sample in samples:
            await peer.send(sample)
            if await peer.recv() != sample:
                wrong.append(len(sample))
        # A message in fragments is one message at the other end.
        await peer.send(["in ", "three ", "parts"])
        if await peer.recv() != "in three parts":
            wrong.append("fragments")
        await (await peer.ping("are you there"))
        await peer.send("ping from-the-upstream")
        told = await peer.recv()
        await peer.close(4001, "enough, danke")
        noted = await until_seen("the close", lambda seen: seen.get("code"))
        return {
            "protocol": peer.subprotocol,
            "extensions": ", ".join(e.name for e in peer.protocol.extensions),
            "wrong": wrong,
            "pong": "are you there",
            "told": told,
            "closed": {"code": peer.close_code, "reason": peer.close_reason},
            "noted": noted,
        }


async def flood():
    count = JOB["count"]
    received, disorder, said = 0, None, None
    async with dial() as peer:
        started = now()

        async def send():
            for number in range(count):
                await peer.send(struct.pack(">I", number))

        await peer.send(f"flood {count}")
        sending = asyncio.create_task(send())
        while received < count or said is None:
            message = await peer.recv()
            if isinstance(message, str):
                said = message
                continue
            if struct.unpack(">I", message)[0] != received and disorder is None:
                disorder = received
            received += 1
        await sending
        took = now() - started
        await peer.close(1000)
    noted = await until_seen("the close", lambda seen: seen.get("code"))
    return {"received": received, "disorder": disorder, "said": said, "took": took, "noted": noted}


async def closed_by_upstream():
    async with dial() as peer:
        await peer.send("close 4002 out of stock")
        return await closing(peer)


async def broken_by_upstream():
    async with dial() as peer:
        await peer.send("break")
        return await closing(peer)


async def vanish():
    peer = await dial()
    await until_seen("the upgrade", lambda seen: seen.get("began"))
    left = now()
    peer.transport.abort()
    noted = await until_seen("the end", lambda seen: seen.get("closed"))
    return {"after": noted["closed"] - left, "code": noted["code"]}


async def refused():
    try:
        await dial("/refuse")
    except InvalidStatus as error:
        answer = error.response
        fields = [[name.lower(), value] for name, value in answer.headers.raw_items()]
        return {"status": answer.status_code, "text": bytes(answer.body).decode(), "fields": fields}
    raise RuntimeError("it was let in")


JOBS = {
    "talk": talk,
    "flood": flood,
    "closedByUpstream": closed_by_upstream,
    "brokenByUpstream": broken_by_upstream,
    "vanish": vanish,
    "refused": refused,
}


async def main():
    print(json.dumps(await asyncio.wait_for(JOBS[JOB["job"]](), 25)))


asyncio.run(main())
