"""A gRPC caller on PyPI's grpcio. Takes a job as JSON in its argument, prints what it saw as one line of JSON. All kinds of calls go over
one channel; { base: URL, ca, token, id }."""

import json
import sys
import threading
import time
from urllib.parse import urlsplit

import grpc

JOB = json.loads(sys.argv[1])
SERVICE = "/stacks.Stacks/"
LIMIT = 20


def now():
    return time.monotonic() * 1000


def dial():
    base = urlsplit(JOB["base"])
    options = [("grpc.max_receive_message_length", 16 << 20)]
    if base.scheme == "http":
        return grpc.insecure_channel(base.netloc, options=options)
    with open(JOB["ca"], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    # Every host name leads to loopback; the name is what TLS and :authority say.
    options += [("grpc.ssl_target_name_override", base.hostname), ("grpc.default_authority", base.netloc)]
    return grpc.secure_channel(f"127.0.0.1:{base.port}", credentials, options=options)


CHANNEL = dial()


def metadata(*more):
    given = [("x-case", JOB["id"]), *more]
    if JOB.get("token"):
        given.append(("authorization", f"Bearer {JOB['token']}"))
    return given


def pairs(items):
    return [[key, list(value) if isinstance(value, bytes) else value] for key, value in items or ()]


def failure(error):
    return {
        "code": error.code().value[0],
        "details": error.details(),
        "initial": pairs(error.initial_metadata()),
        "trailing": pairs(error.trailing_metadata()),
    }


def seen():
    text, _ = CHANNEL.unary_unary(SERVICE + "Seen").with_call(JOB["id"].encode(), metadata=metadata(), timeout=LIMIT)
    return json.loads(text)


def until_cancelled():
    end = now() + 10_000
    while True:
        told = seen()
        if "cancelled" in told or now() > end:
            return told
        time.sleep(0.005)


def unary():
    message = bytes(i * 31 & 0xFF for i in range(3_000_000))
    more = [("x-many", "one"), ("x-many", "two"), ("x-binary-bin", bytes([0, 1, 255]))]
    call = CHANNEL.unary_unary(SERVICE + "Unary")
    answer, done = call.with_call(message, metadata=metadata(*more), timeout=LIMIT)
    told = seen()
    empty = call(b"", metadata=metadata(), timeout=LIMIT)
    return {
        "same": answer == message,
        "empty": empty == b"",
        "code": done.code().value[0],
        "initial": pairs(done.initial_metadata()),
        "trailing": pairs(done.trailing_metadata()),
        "seen": told,
    }


def down():
    # So that the first message does not wait for the connection.
    seen()
    calls = CHANNEL.unary_stream(SERVICE + "Down")(b"20 20", metadata=metadata(), timeout=LIMIT)
    late = [now() - float(message) for message in calls]
    return {"late": late, "code": calls.code().value[0]}


def up():
    messages = (bytes(1000) for _ in range(1000))
    answer = CHANNEL.stream_unary(SERVICE + "Up")(messages, metadata=metadata(), timeout=LIMIT)
    return {"answer": answer.decode()}


def both():
    seen()
    go = threading.Semaphore(1)

    def messages():
        for number in range(20):
            go.acquire()
            sent.append(now())
            yield b"%d" % number

    sent, trips, words = [], [], []
    calls = CHANNEL.stream_stream(SERVICE + "Both")(messages(), metadata=metadata(), timeout=LIMIT)
    for message in calls:
        trips.append(now() - sent[-1])
        words.append(message.decode())
        go.release()
    trailing = pairs(calls.trailing_metadata())
    return {"trips": trips, "words": words, "code": calls.code().value[0], "trailing": trailing}


def errors():
    found = []
    for code in range(1, 17):
        try:
            CHANNEL.unary_unary(SERVICE + "Fail")(b"%d" % code, metadata=metadata(), timeout=LIMIT)
        except grpc.RpcError as error:
            found.append(failure(error))
    try:
        CHANNEL.unary_unary(SERVICE + "NoSuchMethod")(b"", metadata=metadata(), timeout=LIMIT)
    except grpc.RpcError as error:
        found.append(failure(error))
    return {"found": found}


def denied():
    """Without a token: the relay's own refusal, which is no gRPC answer."""
    try:
        CHANNEL.unary_unary(SERVICE + "Unary")(b"", timeout=LIMIT)
    except grpc.RpcError as error:
        return failure(error)
    return {"code": 0}


def deadline():
    started = now()
    try:
        CHANNEL.unary_unary(SERVICE + "Slow")(b"", metadata=metadata(), timeout=0.4)
        code = 0
    except grpc.RpcError as error:
        code = error.code().value[0]
    return {"code": code, "took": now() - started, "started": started, "seen": until_cancelled()}


def cancel(kind):
    if kind == "SlowDown":
        call = CHANNEL.unary_stream(SERVICE + kind)(b"", metadata=metadata(), timeout=LIMIT)
        first = next(call).decode()
    else:
        call = CHANNEL.unary_unary(SERVICE + kind).future(b"", metadata=metadata(), timeout=LIMIT)
        first = None
    end = now() + 10_000
    while "began" not in seen() and now() < end:
        time.sleep(0.005)
    left = now()
    call.cancel()
    told = until_cancelled()
    return {"first": first, "after": told.get("cancelled", float("inf")) - left}


JOBS = {
    "unary": unary,
    "down": down,
    "up": up,
    "both": both,
    "errors": errors,
    "denied": denied,
    "deadline": deadline,
    "cancelUnary": lambda: cancel("Slow"),
    "cancelStream": lambda: cancel("SlowDown"),
}

report = {}
CASE = JOB["id"]
for name in JOB["jobs"]:
    JOB["id"] = f"{CASE}-{name}"
    report[name] = JOBS[name]()
print(json.dumps(report), flush=True)
CHANNEL.close()
