"""A WebSocket upstream on PyPI's websockets; says the same as upstream_ws.mjs (see there). Prints `ready http=… control=…`; a plain GET of
/seen/CASE tells what arrived under that X-Case."""

import asyncio
import json
import struct
import time
from http import HTTPStatus

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

cases = {}


def now():
    return time.monotonic() * 1000


def first(connection, request):
    """Answers what is no WebSocket, before the upgrade."""
    if request.path.startswith("/seen/"):
        response = connection.respond(HTTPStatus.OK, json.dumps(cases.get(request.path[6:], {})))
        response.headers["Connection"] = "close"
        return response
    if request.path.startswith("/refuse"):
        response = connection.respond(HTTPStatus.FORBIDDEN, "no.\n")
        response.headers["X-Reason"] = "closed shop"
        return response
    return None


async def flood(peer, total):
    for number in range(total):
        await peer.send(struct.pack(">I", number))


async def converse(peer):
    seen = cases.setdefault(peer.request.headers.get("X-Case", ""), {})
    seen.update(
        began=now(),
        url=peer.request.path,
        protocol=peer.subprotocol,
        extensions=", ".join(e.name for e in peer.protocol.extensions),
        fields=[[name.lower(), value] for name, value in peer.request.headers.raw_items()],
    )
    expected, total, sending = 0, None, None
    try:
        async for message in peer:
            seen["messages"] = seen.get("messages", 0) + 1
            if total and isinstance(message, bytes) and len(message) == 4:
                if struct.unpack(">I", message)[0] != expected:
                    seen.setdefault("disorder", expected)
                expected += 1
                if expected == total:
                    await peer.send(f"flooded {expected}")
                continue
            command, _, rest = message.partition(" ") if isinstance(message, str) else ("", "", "")
            if command == "close":
                code, _, reason = rest.partition(" ")
                await peer.close(int(code), reason)
            elif command == "ping":
                await (await peer.ping(rest))
                await peer.send(f"pong {rest}")
            elif command == "break":
                peer.transport.abort()
            elif command == "flood":
                total = int(rest)
                sending = asyncio.create_task(flood(peer, total))
            else:
                await peer.send(message)
    except ConnectionClosed:
        pass
    finally:
        if sending:
            sending.cancel()
        await peer.wait_closed()
        seen.update(code=peer.close_code, reason=peer.close_reason, closed=now())


async def main():
    async with serve(
        converse, "127.0.0.1", 0, process_request=first, subprotocols=["chat.v1"], max_size=8 << 20
    ) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"ready http=127.0.0.1:{port} control=127.0.0.1:{port}", flush=True)
        await server.serve_forever()


asyncio.run(main())
