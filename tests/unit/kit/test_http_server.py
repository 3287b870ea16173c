import asyncio
import functools
import json
import socket
import struct
from contextlib import asynccontextmanager

import pytest
import uvloop

from noria.kit.http_head import header_lines
from noria.kit.http_request import Limits
from noria.kit.http_server import HttpServer, error_answer


def on_uvloop(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), 10))

    return run


@asynccontextmanager
async def serving(handler, *, error=error_answer, path=None, **limits):
    server = HttpServer(handler, limits=Limits(**limits), error=error)
    if path is None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    await server.start(path or sock)
    writers = []

    async def connect():
        opening = asyncio.open_unix_connection(path) if path else asyncio.open_connection(*address)
        reader, writer = await opening
        writers.append(writer)
        return reader, writer

    try:
        yield server, connect
    finally:  # uvloop never closes a loop that still listens while warnings are errors
        for writer in writers:
            writer.close()
        await server.drain(0)
    assert server.connections == 0
    assert server.buffered.used == 0


async def read_answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split(" ")[1])
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    if "content-length" in headers:
        return status, headers, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return status, headers, body


def echo(request):
    answer = {"method": request.method, "path": request.path, "query": request.query, "body": request.body.decode()}
    request.response.send(200, [("content-type", "application/json")], json.dumps(answer).encode())


def get(path="/", extra=""):
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n{extra}\r\n".encode()


def post(body, extra=""):
    return f"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


@on_uvloop
async def test_a_request_reaches_the_handler_and_its_answer_the_client():
    seen = []

    def handler(request):
        seen.append(request)
        echo(request)

    async with serving(handler) as (server, connect):
        reader, writer = await connect()
        writer.write(b"POST /a%20b?x=1&y HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 3\r\n\r\nabc")
        status, headers, body = await read_answer(reader)
        assert status == 200
        assert json.loads(body) == {"method": "POST", "path": "/a%20b", "query": "x=1&y", "body": "abc"}
        assert headers["date"].endswith("GMT")
        assert "server" not in headers
        assert "connection" not in headers
        request = seen[0]
        assert request.headers == {"host": "a", "x-two": "1, 2", "content-length": "3"}
        assert request.peer == "127.0.0.1"
        assert request.arrival > 0
        assert (server.requests, server.accepted, server.connections) == (1, 1, 1)
        assert server.bytes_in > 60
        assert server.bytes_out > 100


@on_uvloop
async def test_one_connection_carries_many_requests():
    async with serving(echo) as (server, connect):
        reader, writer = await connect()
        for i in range(5):
            writer.write(get(f"/{i}"))
            assert json.loads((await read_answer(reader))[2])["path"] == f"/{i}"
        assert server.accepted == 1


@on_uvloop
async def test_pipelined_requests_are_handled_one_after_the_other_in_order():
    waiting = []
    async with serving(waiting.append) as (_, connect):
        reader, writer = await connect()
        writer.write(b"".join(get(f"/{i}") for i in range(3)))
        for i in range(3):
            while not waiting:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
            assert len(waiting) == 1
            echo(waiting.pop())
            assert json.loads((await read_answer(reader))[2])["path"] == f"/{i}"


@on_uvloop
async def test_reading_stops_when_a_client_sends_far_ahead_and_goes_on_later():
    waiting = []
    async with serving(waiting.append, max_ahead=1000) as (server, connect):
        reader, writer = await connect()
        writer.write(get())
        while not waiting:
            await asyncio.sleep(0.001)
        writer.write(post(b"x" * 6_000_000))
        await asyncio.sleep(0.1)
        assert server.bytes_in < 1_000_000
        echo(waiting.pop())
        assert (await read_answer(reader))[0] == 200
        while not waiting:
            await asyncio.sleep(0.001)
        assert len(waiting[0].body) == 6_000_000
        waiting.pop().response.send(204, [], b"")


@on_uvloop
async def test_a_stream_is_chunked_and_empty_writes_do_not_end_it():
    def handler(request):
        response = request.response
        response.start(200, [("content-type", "text/event-stream")], length=None)
        for piece in (b"data: 1\n\n", b"", b"x" * 100_000):
            response.write(piece)
        response.end()

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(get())
            status, headers, body = await read_answer(reader)
            assert (status, headers["transfer-encoding"]) == (200, "chunked")
            assert body == b"data: 1\n\n" + b"x" * 100_000


@on_uvloop
async def test_an_http_1_0_client_gets_a_stream_until_close():
    def handler(request):
        request.response.start(200, [], length=None)
        request.response.write(b"abc")
        request.response.end()

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert body == b"abc"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
@on_uvloop
async def test_answers_without_body_leave_the_connection_in_step(method, status):
    async with serving(lambda r: r.response.send(status, [], b"abc")) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(f"{method} / HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert (b"content-length: 3" in head) == (method == "HEAD")


@on_uvloop
async def test_the_body_is_asked_for_with_100_continue():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"ab")
            await asyncio.sleep(0.005)
            writer.write(b"c")
            assert json.loads((await read_answer(reader))[2])["body"] == "abc"


@on_uvloop
async def test_a_too_large_body_is_refused_before_it_is_read():
    async with serving(echo, max_body=100) as (server, connect):
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 101\r\nexpect: 100-continue\r\n\r\n")
        status, headers, body = await read_answer(reader)
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["error"]["code"] == "body_too_large"
        assert await reader.read() == b""
        assert server.requests == 0


@on_uvloop
async def test_refusals_have_the_shape_that_the_caller_gives_them():
    async with serving(echo, error=lambda status, code, message: ([("x-why", code)], f"{status}|{code}".encode())) as (
        _,
        connect,
    ):
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        _, headers, body = await read_answer(reader)
        assert (headers["x-why"], body) == ("host_missing", b"400|host_missing")


@on_uvloop
async def test_unfinished_bodies_of_all_connections_together_are_bounded():
    async with serving(echo, max_buffered=1000) as (server, connect):
        for _ in range(2):
            reader, writer = await connect()
            writer.write(post(b"x" * 800)[:-200])
            while server.connections and server.buffered.used == 0:
                await asyncio.sleep(0.001)
        assert (await read_answer(reader))[0] == 503
        assert server.buffered.used == 600


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@on_uvloop
async def test_the_handler_hears_at_once_when_the_client_goes_away(how):
    gone = asyncio.Event()
    requests = []

    def handler(request):
        requests.append(request)
        request.response.on_close = gone.set
        request.response.start(200, [], length=None)
        request.response.write(b"first")

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        await reader.readuntil(b"first")
        if how == "half-close":
            writer.write_eof()
        elif how == "close":
            writer.close()
        else:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 1)
        response = requests[0].response
        assert response.closed
        assert not response.writable
        response.write(b"into the void")
        response.end()


@on_uvloop
async def test_an_answer_can_be_given_up_before_it_has_started_without_raising():
    gone = asyncio.Event()
    requests = []

    def handler(request):
        requests.append(request)
        request.response.on_close = gone.set

    async with serving(handler) as (_, connect):
        _, writer = await connect()
        writer.write(get())
        while not requests:
            await asyncio.sleep(0.001)
        writer.close()
        await gone.wait()
        requests[0].response.send(200, [], b"late")


@on_uvloop
async def test_a_slow_reader_pauses_and_resumes_the_source():
    events = []
    requests = []

    def handler(request):
        requests.append(request)
        request.response.on_pause = lambda: events.append("pause")
        request.response.on_resume = lambda: events.append("resume")
        request.response.start(200, [], length=None)

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        await reader.readuntil(b"\r\n\r\n")
        response = requests[0].response
        sent = 0
        while not events:
            response.write(b"x" * 65536)
            sent += 65536
            await asyncio.sleep(0)
        assert not response.writable
        got = 0
        while got < sent:
            got += (await reader.readexactly(int(await reader.readline(), 16) + 2)).count(b"x")
        assert events == ["pause", "resume"]
        response.end()


@on_uvloop
async def test_a_reader_that_never_reads_is_cut_off():
    gone = asyncio.Event()

    def handler(request):
        request.response.on_close = gone.set
        request.response.start(200, [], length=None)
        for _ in range(200):
            request.response.write(b"x" * 65536)

    async with serving(handler, write_timeout=0.1) as (_, connect):
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(get())
        await asyncio.wait_for(gone.wait(), 3)


@on_uvloop
async def test_an_aborted_stream_is_seen_as_truncated_after_what_was_written():
    def handler(request):
        request.response.start(200, [], length=None)
        request.response.write(b"data: error\n\n")
        request.response.abort()
        request.response.write(b"ignored")

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        answer = await reader.read()
        assert b"data: error\n\n" in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert b"ignored" not in answer


@on_uvloop
async def test_an_aborted_answer_that_only_close_would_end_is_reset():
    requests = []

    def handler(request):
        requests.append(request)
        request.response.start(200, [], length=None)
        request.response.write(b"part")

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"part")
        requests[0].response.abort()
        with pytest.raises(ConnectionResetError):
            await reader.read()


@on_uvloop
async def test_misuse_of_a_response_raises():
    checked = []

    def handler(request):
        response = request.response
        with pytest.raises(RuntimeError):
            response.write(b"x")
        with pytest.raises(RuntimeError):
            response.end()
        with pytest.raises(ValueError, match="x-a"):
            response.send(200, [("x-a", "1\r\nset-cookie: 2")], b"")
        with pytest.raises(ValueError, match="100"):
            response.send(100, [], b"")
        response.start(200, [], length=3)
        with pytest.raises(RuntimeError):
            response.start(200, [], length=3)
        with pytest.raises(ValueError, match="longer"):
            response.write(b"abcd")
        checked.append(response)
        response.abort()

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        await reader.read()
        assert checked


@on_uvloop
async def test_a_body_shorter_than_announced_cuts_the_connection():
    def handler(request):
        request.response.start(200, [], length=3)
        request.response.write(b"ab")
        with pytest.raises(ValueError, match="1 bytes shorter"):
            request.response.end()

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        assert (await reader.read()).endswith(b"\r\n\r\nab")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "a\rb"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("x y", "1"),
        ("x:", "1"),
        ("", "1"),
        ("Content-Length", "1"),
        ("x", "\u20ac"),
    ],
)
def test_headers_that_could_split_a_message_are_refused(name, value):
    with pytest.raises(ValueError):
        header_lines([("ok", "1"), (name, value)]).encode("latin-1")


@pytest.mark.parametrize(
    ("part", "status"), [(b"GET / HT", 408), (get()[:-2], 408), (post(b"abc")[:-1], 408), (b"", None), (get(), 200)]
)
@on_uvloop
async def test_clients_that_stall_are_let_go(part, status):
    short = {"header_timeout": 0.05, "body_timeout": 0.05, "idle_timeout": 0.05}
    async with serving(echo, **short) as (_, connect):
        reader, writer = await connect()
        writer.write(part)
        answer = await asyncio.wait_for(reader.read(), 3)
        assert answer[9:12] == (str(status).encode() if status else b"")


@on_uvloop
async def test_a_head_that_dribbles_in_does_not_outlive_the_header_timeout():
    async with serving(echo, header_timeout=0.1) as (_, connect):
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n")
        answer = asyncio.ensure_future(reader.read())
        for _ in range(200):
            if answer.done():
                break
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.01)
        assert (await answer).startswith(b"HTTP/1.1 408 ")


@on_uvloop
async def test_connections_beyond_the_limit_get_a_503_and_others_go_on():
    async with serving(echo, max_connections=1) as (server, connect):
        first, first_writer = await connect()
        first_writer.write(get())
        await read_answer(first)
        second, _ = await connect()
        assert (await read_answer(second))[0] == 503
        first_writer.write(get())
        assert (await read_answer(first))[0] == 200
        assert server.refused == 1


@on_uvloop
async def test_draining_finishes_what_is_in_flight_and_says_close():
    waiting = []
    async with serving(waiting.append) as (server, connect):
        idle_reader, _ = await connect()
        reader, writer = await connect()
        writer.write(get())
        while not waiting:
            await asyncio.sleep(0.001)
        drained = asyncio.ensure_future(server.drain(2.0))
        assert await idle_reader.read() == b""
        with pytest.raises(OSError):
            await connect()
        assert not drained.done()
        echo(waiting.pop())
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await drained == 0


@on_uvloop
async def test_a_request_on_its_way_while_draining_begins_is_still_answered():
    async with serving(echo) as (server, connect):
        reader, writer = await connect()
        writer.write(get())
        await read_answer(reader)
        drained = asyncio.ensure_future(server.drain(2.0))
        await asyncio.sleep(0.01)
        writer.write(get("/late"))
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await drained == 0


@on_uvloop
async def test_what_does_not_finish_within_the_grace_is_cut_and_counted():
    closed = []

    def handler(request):
        request.response.on_close = lambda: closed.append(request.path)
        if request.path == "/started":
            request.response.start(200, [], length=None)

    async with serving(handler) as (server, connect):
        started, writer = await connect()
        writer.write(get("/started"))
        silent, writer2 = await connect()
        writer2.write(get("/silent"))
        while server.requests < 2:
            await asyncio.sleep(0.001)
        drained = asyncio.ensure_future(server.drain(0.05))
        assert not (await started.read()).endswith(b"0\r\n\r\n")
        assert (await read_answer(silent))[0] == 503
        writer2.close()
        assert await drained == 2
        assert sorted(closed) == ["/silent", "/started"]


@on_uvloop
async def test_a_unix_path_is_served_to_its_owner_only(tmp_path):
    peers = []

    def handler(request):
        peers.append(request.peer)
        echo(request)

    path = tmp_path / "s"
    async with serving(handler, path=path) as (_, connect):
        assert path.stat().st_mode & 0o777 == 0o600
        reader, writer = await connect()
        writer.write(get())
        assert (await read_answer(reader))[0] == 200
        assert peers == [""]


@on_uvloop
async def test_nagle_is_off():
    options = []

    def handler(request):
        transport = request.response._wire.transport
        options.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        echo(request)

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        await read_answer(reader)
        assert options[0] != 0


@on_uvloop
async def test_frames_of_one_turn_leave_in_one_system_call():
    writes = []

    class Transport:
        def write(self, data):
            writes.append(data)

    def handler(request):
        real = request.response._wire.transport
        request.response._wire.transport = Transport()
        request.response.start(200, [], length=None)
        for _ in range(10):
            request.response.write(b"data: x\n\n")
        request.response.end()
        request.response._wire.transport = real
        real.write(b"".join(writes))

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        assert (await read_answer(reader))[2] == b"data: x\n\n" * 10
        assert len(writes) == 1


@on_uvloop
async def test_an_answer_that_ends_in_the_turn_of_its_last_bytes_leaves_in_one_system_call():
    writes = []

    class Transport:
        def write(self, data):
            writes.append(data)

    async def ended(response, told):
        await told
        response.end()
        response._wire.transport = real
        real.write(b"".join(writes))

    def handler(request):
        nonlocal real
        response = request.response
        loop, real = response._wire.loop, response._wire.transport
        response._wire.transport = Transport()
        told = loop.create_future()
        tasks.append(loop.create_task(ended(response, told)))

        def comes():  # as from an upstream: the last bytes, then the word that they were the last
            response.start(200, [], length=None)
            response.write(b"data: x\n\n")
            told.set_result(None)

        loop.call_later(0, comes)

    real, tasks = None, []
    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(get())
        assert (await read_answer(reader))[2] == b"data: x\n\n"
        assert len(writes) == 1
