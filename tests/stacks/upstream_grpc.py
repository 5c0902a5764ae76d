"""A gRPC upstream on PyPI's grpcio, without TLS. Messages are bytes as they are, so nothing has to be generated. Methods of /stacks.Stacks:

  Unary        gives the message back, with metadata before and after
  Down         N messages, one every MS milliseconds ("N MS"), each with the time of its sending
  Up           how many messages came, how long they were together
  Both         each message comes back at once
  Fail         ends with the status code in the message, details and trailing metadata
  Slow         never answers; what ended it is noted
  SlowDown     a message, then nothing more; what ended it is noted
  Seen         what was noted under the case in the message, as JSON

Prints `ready http=…`."""

import json
import threading
import time
from concurrent import futures

import grpc

cases = {}


def now():
    return time.monotonic() * 1000


def noted(context):
    metadata = [[item.key, item.value] for item in context.invocation_metadata() if isinstance(item.value, str)]
    case = dict(metadata).get("x-case", "")
    seen = cases.setdefault(case, {})
    seen.update(began=now(), metadata=metadata, remaining=context.time_remaining())
    return seen


def unary(message, context):
    seen = noted(context)
    binary = dict(context.invocation_metadata()).get("x-binary-bin")
    seen["binary"] = list(binary) if binary else None
    context.send_initial_metadata([("x-before", "first"), ("x-before", "second")])
    context.set_trailing_metadata([("x-after", "last"), ("x-after-bin", bytes([0, 1, 255]))])
    return message


def down(message, context):
    noted(context)
    count, gap = (int(part) for part in message.split())
    for _ in range(count):
        yield str(now()).encode()
        time.sleep(gap / 1000)


def up(messages, context):
    noted(context)
    count = size = 0
    for message in messages:
        count += 1
        size += len(message)
    return f"{count} {size}".encode()


def both(messages, context):
    noted(context)
    context.send_initial_metadata([("x-before", "at once")])
    yield from messages
    context.set_trailing_metadata([("x-after", "the end")])


def fail(message, context):
    noted(context)
    context.set_trailing_metadata([("x-why", "because")])
    code = next(code for code in grpc.StatusCode if code.value[0] == int(message))
    context.abort(code, "nicht möglich: 100% ausverkauft")


def wait(context):
    """Until the call has ended; notes when."""
    seen = noted(context)
    ended = threading.Event()

    def note():
        seen["cancelled"] = now()
        ended.set()

    if not context.add_callback(note):
        note()
    ended.wait(20)


def slow(_message, context):
    wait(context)
    return b""


def slow_down(_message, context):
    yield b"first"
    wait(context)


def told(message, _context):
    return json.dumps(cases.get(message.decode(), {})).encode()


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "SlowDown": grpc.unary_stream_rpc_method_handler(slow_down),
    "Seen": grpc.unary_unary_rpc_method_handler(told),
}

server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=16), options=[("grpc.max_receive_message_length", 16 << 20)]
)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("stacks.Stacks", METHODS)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"ready http=127.0.0.1:{port}", flush=True)
server.wait_for_termination()
