import asyncio
import datetime as dt
import functools
import gzip
import ipaddress
import socket
import ssl
import struct
from contextlib import asynccontextmanager

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from noria.kit.http_client import (
    BadResponse,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    Flow,
    HttpClient,
    IdleTimeout,
    PoolExhausted,
    TotalTimeout,
)
from noria.kit.http_server import HttpServer

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\n"


def on_uvloop(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), 5))

    return run


class Upstream:
    """A raw server that plays one script for each connection, the last one again and again."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.connections = 0
        self.requests = []
        self.eof = asyncio.Event()
        self.tasks = set()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        try:
            await script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):
            return  # the client has gone, whatever the event loop calls it
        finally:
            self.eof.set()
            writer.close()

    async def request(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(v[15:]) for v in head.split(b"\r\n") if v.startswith(b"content-length:")), 0)
        self.requests.append((head, await reader.readexactly(length)))


def answers(*parts, times=1000, pause=0.0, then="close"):
    """A script: for each of `times` requests send `parts`, `pause` seconds apart; `then` close, reset or hang."""

    async def script(upstream, reader, writer):
        for _ in range(times):
            await upstream.request(reader)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(pause)
        if then == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif then == "hang":
            await reader.read()
            upstream.eof.set()

    return script


@asynccontextmanager
async def upstream_of(*scripts, **options):
    upstream = Upstream(*scripts)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=options.pop("tls", None))
    port = server.sockets[0].getsockname()[1]
    scheme = options.pop("scheme", "http")
    client = HttpClient(f"{scheme}://{options.pop('host', '127.0.0.1')}:{port}/v1", **options)
    try:
        yield upstream, client
    finally:
        await client.close()
        server.close()
        for task in upstream.tasks:
            task.cancel()
        await asyncio.gather(*upstream.tasks, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert client.open == 0


@on_uvloop
async def test_a_call_sends_one_clean_request_and_gives_status_headers_and_body():
    parts = [b"HTTP/1.1 201 Created\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\n", b"a", b"bc"]
    async with upstream_of(answers(*parts)) as (upstream, client):
        status, headers, body = await client.send("POST", "/chat?x=1", [("authorization", "Bearer k")], b"{}")
        assert (status, body) == (201, b"abc")
        assert headers == [("x-a", "1"), ("x-a", "2"), ("content-length", "3")]
        head, sent = upstream.requests[0]
        assert head.startswith(b"POST /v1/chat?x=1 HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\nauthorization: Bearer k\r\n" in head
        assert b"\r\naccept-encoding: identity\r\n" in head
        assert b"\r\ncontent-length: 2\r\n" in head
        assert sent == b"{}"


@on_uvloop
async def test_connections_are_reused_last_in_first_out():
    async with upstream_of(answers(OK)) as (upstream, client):
        await asyncio.gather(*[client.send("GET", "/", [], b"") for _ in range(3)])
        assert (upstream.connections, client.open, client.idle) == (3, 3, 3)
        for _ in range(10):
            await client.send("GET", "/", [], b"")
        assert upstream.connections == 3


@pytest.mark.parametrize(
    "close", [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", OK[:5] + b"1.0" + OK[8:]]
)
@on_uvloop
async def test_a_connection_that_the_server_will_close_is_not_reused(close):
    async with upstream_of(answers(close)) as (upstream, client):
        for _ in range(2):
            assert (await client.send("GET", "/", [], b""))[2] == b"ok"
        assert upstream.connections == 2


@on_uvloop
async def test_idle_connections_expire():
    async with upstream_of(answers(OK), keep_idle=0.05) as (upstream, client):
        await client.send("GET", "/", [], b"")
        while client.open:
            await asyncio.sleep(0.01)
        assert client.idle == 0
        await client.send("GET", "/", [], b"")
        assert upstream.connections == 2


@on_uvloop
async def test_a_stream_goes_into_the_sink_piece_by_piece_and_the_body_is_empty():
    parts = [HEAD + b"transfer-encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\nTrailer: x\r\n\r\n"]
    got = []
    heads = []

    def on_head(status, headers):
        heads.append((status, headers))
        return got.append

    async with upstream_of(answers(*parts, pause=0.01)) as (upstream, client):
        for _ in range(2):
            status, headers, body = await client.send("GET", "/", [], b"", on_head=on_head)
            assert (status, body) == (200, b"")
        assert got == [b"abc", b"de"] * 2
        assert heads == [(200, [("transfer-encoding", "chunked")])] * 2
        assert headers == [("transfer-encoding", "chunked")]
        assert upstream.connections == 1


@on_uvloop
async def test_on_head_may_choose_the_body_instead_of_a_sink():
    async with upstream_of(answers(OK)) as (_, client):
        assert (await client.send("GET", "/", [], b"", on_head=lambda s, h: None))[2] == b"ok"


@on_uvloop
async def test_what_on_head_raises_the_call_raises_and_the_connection_closes():
    def on_head(status, headers):
        raise KeyError(status)

    async with upstream_of(answers(OK, then="hang")) as (_, client):
        with pytest.raises(KeyError):
            await client.send("GET", "/", [], b"", on_head=on_head)
        assert client.idle == 0


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@on_uvloop
async def test_answers_without_body_need_no_length(status):
    async with upstream_of(answers(b"HTTP/1.1 " + status + b"\r\n\r\n")) as (upstream, client):
        for _ in range(2):
            assert (await client.send("GET", "/", [], b""))[2] == b""
        assert upstream.connections == 1


@on_uvloop
async def test_an_answer_to_head_has_no_body_whatever_its_length_says():
    async with upstream_of(answers(HEAD + b"content-length: 5\r\n\r\n", then="hang")) as (_, client):
        status, headers, body = await client.send("HEAD", "/", [], b"")
        assert (status, headers, body) == (200, [("content-length", "5")], b"")


@on_uvloop
async def test_interim_answers_are_passed_over():
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with upstream_of(answers(interim, OK)) as (_, client):
        assert await client.send("GET", "/", [], b"") == (200, [("content-length", "2")], b"ok")


@on_uvloop
async def test_an_answer_delimited_by_close_is_whole_after_an_orderly_end_only():
    part = HEAD + b"\r\nabc"
    async with upstream_of(answers(part, times=1), answers(part, times=1, pause=0.02, then="reset")) as (_, client):
        assert (await client.send("GET", "/", [], b""))[2] == b"abc"
        with pytest.raises(ConnectionLost) as e:
            await client.send("GET", "/", [], b"")
        assert e.value.received


@pytest.mark.parametrize(
    "part",
    [HEAD[:9], HEAD, HEAD + b"content-length: 5\r\n\r\nabc", HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"],
)
@on_uvloop
async def test_a_truncated_answer_is_a_lost_connection_and_not_sent_again(part):
    async with upstream_of(answers(OK, times=1, then="hang"), answers(part, times=1)) as (upstream, client):
        flow = Flow()
        await asyncio.gather(client.send("GET", "/", [], b""), return_exceptions=True)
        client._idle[0].abort()
        await asyncio.sleep(0.01)
        with pytest.raises(ConnectionLost) as e:
            await client.send("GET", "/", [], b"", flow=flow)
        assert e.value.received
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("then", ["close", "reset"])
@on_uvloop
async def test_a_stale_connection_is_replaced_once(then):
    async def stale(upstream, reader, writer):
        await answers(OK, times=1)(upstream, reader, writer)
        await reader.readexactly(1)  # the next request meets a closing door
        await answers(times=0, then=then)(upstream, reader, writer)

    async with upstream_of(stale, answers(OK)) as (upstream, client):
        for _ in range(2):
            assert (await client.send("POST", "/", [], b"x"))[2] == b"ok"
        assert upstream.connections == 2


@on_uvloop
async def test_a_fresh_connection_that_breaks_is_not_replaced():
    async with upstream_of(answers(times=1)) as (upstream, client):
        with pytest.raises(ConnectionLost) as e:
            await client.send("POST", "/", [], b"x")
        assert not e.value.received
        assert upstream.connections == 1


@on_uvloop
async def test_a_stale_connection_is_replaced_only_once():
    async def stale(upstream, reader, writer):
        await answers(OK, times=1)(upstream, reader, writer)
        await reader.readexactly(1)

    async with upstream_of(stale, answers(times=1)) as (upstream, client):
        await client.send("POST", "/", [], b"x")
        with pytest.raises(ConnectionLost):
            await client.send("POST", "/", [], b"x")
        assert upstream.connections == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n\x00",
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nab",
        HEAD + b"bad name: x\r\n\r\n",
        HEAD + b"x: a\r\n b\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"x: " + b"y" * 3000 + b"\r\n\r\n",
        HEAD + b"x: " + b"y" * 3000,
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        HEAD + b"content-length: 3000\r\n\r\n" + b"x" * 3000,
        HEAD + b"content-encoding: br\r\ncontent-length: 2\r\n\r\nab",
        HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nab",
    ],
)
@on_uvloop
async def test_what_is_not_a_proper_answer_is_a_bad_response(garbage):
    async with upstream_of(answers(garbage, b"z", then="hang", pause=0.02), max_head=2000, max_body=2000) as (_, client):
        with pytest.raises(BadResponse):
            await client.send("GET", "/", [], b"")
        assert client.idle == 0


@on_uvloop
async def test_a_second_answer_in_the_same_packet_is_not_taken_for_the_next_calls():
    async with upstream_of(answers(OK + OK[:20]), answers(OK)) as (upstream, client):
        calls = []
        status, _, body = await client.send("GET", "/", [], b"", on_head=lambda s, h: calls.append(s))
        assert (status, body, calls) == (200, b"ok", [200])
        assert client.idle == 0
        assert (await client.send("GET", "/", [], b""))[2] == b"ok"
        assert upstream.connections == 2


@on_uvloop
async def test_bytes_on_an_idle_connection_end_it():
    async with upstream_of(answers(OK, OK, pause=0.02)) as (_, client):
        await client.send("GET", "/", [], b"")
        await asyncio.sleep(0.05)
        assert client.open == 0


@on_uvloop
async def test_an_unasked_gzip_is_unpacked_for_a_body_and_refused_for_a_sink():
    packed = gzip.compress(b"hello" * 100)
    answer = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed
    async with upstream_of(answers(answer)) as (_, client):
        assert (await client.send("GET", "/", [], b""))[2] == b"hello" * 100
        with pytest.raises(BadResponse, match="gzip"):
            await client.send("GET", "/", [], b"", on_head=lambda s, h: lambda b: None)


@on_uvloop
async def test_a_gzip_bomb_is_a_bad_response():
    packed = gzip.compress(b"\0" * 1_000_000)
    answer = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed
    async with upstream_of(answers(answer), max_body=10_000) as (_, client):
        with pytest.raises(BadResponse, match="exceeds"):
            await client.send("GET", "/", [], b"")


@on_uvloop
async def test_a_refused_connection_is_a_failed_connect():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        client = HttpClient(f"http://127.0.0.1:{s.getsockname()[1]}")
        with pytest.raises(ConnectFailed):
            await client.send("GET", "/", [], b"")
    assert client.open == 0


@on_uvloop
async def test_a_handshake_that_never_ends_is_a_connect_timeout():
    async def silent(upstream, reader, writer):
        await reader.read()
        upstream.eof.set()

    context = ssl.create_default_context()
    async with upstream_of(silent, scheme="https", connect_timeout=0.05, ssl_context=context) as (upstream, client):
        with pytest.raises(ConnectTimeout):
            await client.send("GET", "/", [], b"")
        assert client.open == 0
        await upstream.eof.wait()


@pytest.mark.parametrize(
    ("parts", "timeout", "error"),
    [
        ((), {"first_timeout": 0.05}, FirstByteTimeout),
        ((HEAD,), {"idle_timeout": 0.05}, IdleTimeout),
        ((HEAD + b"content-length: 9\r\n\r\nabc",), {"idle_timeout": 0.05}, IdleTimeout),
        ((HEAD + b"content-length: 99\r\n\r\n", *[b"x"] * 90), {"total_timeout": 0.1, "idle_timeout": 5}, TotalTimeout),
        ((), {"total_timeout": 0.05, "first_timeout": 0.05}, TotalTimeout),
    ],
)
@on_uvloop
async def test_each_kind_of_waiting_has_its_own_timeout_which_closes_the_connection(parts, timeout, error):
    async with upstream_of(answers(*parts, times=1, pause=0.01, then="hang"), **timeout) as (upstream, client):
        with pytest.raises(error):
            await client.send("GET", "/", [], b"")
        await upstream.eof.wait()


@on_uvloop
async def test_cancelling_a_call_closes_its_connection_at_once():
    async with upstream_of(answers(HEAD + b"content-length: 9\r\n\r\n", times=1, then="hang")) as (upstream, client):
        got = []
        call = asyncio.ensure_future(client.send("GET", "/", [], b"", on_head=lambda s, h: got.append))
        while not upstream.requests:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(upstream.eof.wait(), 1)


@on_uvloop
async def test_cancelling_in_the_turn_of_the_answer_does_not_hurt_the_next_call():
    async with upstream_of(answers(OK)) as (_, client):
        calls = []

        def on_head(status, headers):
            calls[-1].cancel()

        for _ in range(5):
            calls.append(asyncio.ensure_future(client.send("GET", "/", [], b"", on_head=on_head)))
            other = asyncio.ensure_future(client.send("GET", "/", [], b""))
            with pytest.raises(asyncio.CancelledError):
                await calls[-1]
            assert (await other)[2] == b"ok"


@on_uvloop
async def test_the_connection_limit_is_kept_and_waiters_are_served_in_order():
    async with upstream_of(answers(OK, pause=0.002), max_connections=2) as (upstream, client):
        order = []

        async def call(i):
            await client.send("GET", f"/{i}", [], b"")
            order.append(i)

        await asyncio.gather(*[call(i) for i in range(10)])
        assert upstream.connections == 2
        paths = [r[0].split()[1] for r in upstream.requests]
        assert paths[2:] == [b"/v1/%d" % i for i in range(2, 10)]
        assert len(order) == 10


@on_uvloop
async def test_a_broken_connection_gives_its_place_to_the_next_in_line():
    async with upstream_of(answers(times=1), answers(OK), max_connections=1) as (_, client):
        results = await asyncio.gather(*[client.send("GET", "/", [], b"") for _ in range(3)], return_exceptions=True)
        assert isinstance(results[0], ConnectionLost)
        assert [r[2] for r in results[1:]] == [b"ok", b"ok"]


@on_uvloop
async def test_waiting_is_bounded_in_number_and_time():
    script = answers(times=1, then="hang")
    async with upstream_of(script, max_connections=1, max_waiting=1, connect_timeout=0.05) as (_, client):
        first = asyncio.ensure_future(client.send("GET", "/", [], b""))
        while not client._all:
            await asyncio.sleep(0.001)
        waiting = asyncio.ensure_future(client.send("GET", "/", [], b""))
        await asyncio.sleep(0)
        with pytest.raises(PoolExhausted, match="wait"):
            await client.send("GET", "/", [], b"")
        with pytest.raises(PoolExhausted, match="busy"):
            await waiting
        assert not client._waiting
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


@on_uvloop
async def test_a_paused_flow_stops_the_upstream_and_its_idle_clock():
    sent = 0

    async def endless(upstream, reader, writer):
        nonlocal sent
        await upstream.request(reader)
        writer.write(HEAD + b"content-length: 20000000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    got = 0
    flow = Flow()

    def sink(data):
        nonlocal got
        if not got:
            flow.pause()
        got += len(data)

    async with upstream_of(endless, idle_timeout=0.1) as (_, client):
        call = asyncio.ensure_future(client.send("GET", "/", [], b"", on_head=lambda s, h: sink, flow=flow))
        await asyncio.sleep(0.3)
        assert got < 1_000_000
        assert sent < 15_000_000
        assert not call.done()
        flow.resume()
        await call
        assert got == 20_000_000


@on_uvloop
async def test_a_closed_client_takes_no_calls_but_finishes_those_in_flight():
    async with upstream_of(answers(OK, pause=0.02)) as (upstream, client):
        call = asyncio.ensure_future(client.send("GET", "/", [], b""))
        while not upstream.requests:
            await asyncio.sleep(0.001)
        await client.close()
        assert (await call)[2] == b"ok"
        with pytest.raises(ConnectFailed):
            await client.send("GET", "/", [], b"")


@on_uvloop
async def test_nagle_is_off_in_the_client():
    async with upstream_of(answers(OK)) as (_, client):
        await client.send("GET", "/", [], b"")
        sock = client._idle[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@on_uvloop
async def test_client_and_server_of_ours_meet_over_a_unix_socket(tmp_path):
    server = HttpServer(lambda r: r.response.send(200, [], r.body[::-1]))
    await server.start(tmp_path / "s")
    client = HttpClient("http://keeper", uds=str(tmp_path / "s"))
    try:
        assert (await client.send("POST", "/", [], b"x" * 500_000 + b"y"))[2] == b"y" + b"x" * 500_000
    finally:
        await client.close()
        await server.drain(0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Path of a self-signed certificate with its key, for the name localhost and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@on_uvloop
async def test_tls_with_a_known_certificate_works_and_connections_are_reused(certificate):
    trust = ssl.create_default_context(cafile=str(certificate))
    options = {"scheme": "https", "host": "localhost", "tls": tls_server(certificate), "ssl_context": trust}
    async with upstream_of(answers(OK), **options) as (upstream, client):
        for _ in range(3):
            assert (await client.send("POST", "/", [], b"x" * 100_000))[2] == b"ok"
        assert upstream.connections == 1
        got = []
        await client.send("GET", "/", [], b"", on_head=lambda s, h: got.append)
        assert got == [b"ok"]


@pytest.mark.parametrize("case", ["unknown authority", "wrong name"])
@on_uvloop
async def test_tls_without_proof_is_a_failed_connect(certificate, case):
    trust = ssl.create_default_context(cafile=str(certificate)) if case == "wrong name" else None
    host = "127.0.0.1" if case == "wrong name" else "localhost"
    options = {"scheme": "https", "host": host, "tls": tls_server(certificate), "ssl_context": trust}
    async with upstream_of(answers(OK), **options) as (upstream, client):
        with pytest.raises(ConnectFailed, match="certificate"):
            await client.send("GET", "/", [], b"")
        assert not upstream.requests


@on_uvloop
async def test_a_tls_stream_cut_without_goodbye_does_not_pass_for_a_whole_one(certificate):
    trust = ssl.create_default_context(cafile=str(certificate))
    script = answers(HEAD + b"\r\nabc", times=1, pause=0.02, then="reset")
    options = {"scheme": "https", "host": "localhost", "tls": tls_server(certificate), "ssl_context": trust}
    async with upstream_of(script, **options) as (_, client):
        with pytest.raises(ConnectionLost):
            await client.send("GET", "/", [], b"")
