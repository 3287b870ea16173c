"""A corpus of requests that two parsers could read in two ways: each is refused, and the connection closed."""

import asyncio
import socket

import pytest
import uvloop

from noria.kit.http_request import Buffered, Limits, RequestReader
from noria.kit.http_server import HttpServer

LIMITS = Limits(max_head=2048, max_headers=20, max_body=1000, linger=0.5)
HOST = b"Host: a\r\n"
TE = b"Transfer-Encoding: chunked\r\n"


def get(headers: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + HOST + headers + b"\r\n" + body


REFUSED = {
    # two framings, or one that is not clear
    "length and coding": (post(b"Content-Length: 3\r\n" + TE, b"0\r\n\r\n"), 400),
    "coding and length": (post(TE + b"Content-Length: 3\r\n", b"0\r\n\r\n"), 400),
    "two equal lengths": (post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), 400),
    "two different lengths": (post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"), 400),
    "length list": (post(b"Content-Length: 3, 3\r\n", b"abc"), 400),
    "length with sign": (post(b"Content-Length: +3\r\n", b"abc"), 400),
    "negative length": (post(b"Content-Length: -3\r\n", b"abc"), 400),
    "hexadecimal length": (post(b"Content-Length: 0x3\r\n", b"abc"), 400),
    "empty length": (post(b"Content-Length: \r\n", b"abc"), 400),
    "length with underscore": (post(b"Content-Length: 1_0\r\n", b"abcdefghij"), 400),
    "length beyond 64 bits": (post(b"Content-Length: 18446744073709551617\r\n", b"a"), 400),
    "length beyond the limit": (post(b"Content-Length: 1001\r\n", b"a"), 413),
    "length split by a space": (post(b"Content-Length: 1 0\r\n", b"abcdefghij"), 400),
    "coding identity": (post(b"Transfer-Encoding: identity\r\n", b"abc"), 501),
    "coding list": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "coding chunked twice": (post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 400),
    "coding in capitals": (post(b"Transfer-Encoding: CHUNKED\r\n", b"0\r\n\r\n"), 501),
    "coding that ends in chunked": (post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 501),
    "coding after vertical tab": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), 400),
    "two coding headers": (post(TE + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"), 400),
    "two equal coding headers": (post(TE + TE, b"0\r\n\r\n"), 400),
    "quoted coding": (post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), 501),
    "coding in HTTP/1.0": (post(TE, b"0\r\n\r\n", b"1.0"), 400),
    # chunks
    "chunk size with sign": (post(TE, b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size with 0x": (post(TE, b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size with space": (post(TE, b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size overflow": (post(TE, b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size missing": (post(TE, b"\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk size ended by LF": (post(TE, b"3\nabc\r\n0\r\n\r\n"), 400),
    "chunk data too long": (post(TE, b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "chunk data without CRLF": (post(TE, b"3\r\nabc0\r\n\r\n"), 400),
    "chunk extension with LF": (post(TE, b"3;a\nb\r\nabc\r\n0\r\n\r\n"), 400),
    "chunks beyond the limit": (post(TE, b"1f4\r\n" + b"x" * 500 + b"\r\n" + b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n"), 413),
    "trailer that is no header": (post(TE, b"0\r\nFoo\r\n\r\n"), 400),
    # header syntax
    "space before colon": (get(b"Host : a\r\n"), 400),
    "tab before colon": (get(b"Host\t: a\r\n"), 400),
    "length with space before colon": (post(b"Content-Length : 3\r\n", b"abc"), 400),
    "folded line": (get(HOST + b"X: b\r\n c\r\n"), 400),
    "folded coding": (post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 400),
    "first header folded": (get(b" Host: a\r\n"), 400),
    "NUL in a value": (get(b"Host: a\x00b\r\n"), 400),
    "NUL in a name": (get(HOST + b"X\x00Y: 1\r\n"), 400),
    "control character in a value": (get(HOST + b"X: a\x01b\r\n"), 400),
    "bare CR in a value": (get(HOST + b"X: a\rY: b\r\n"), 400),
    "bare CR between headers": (get(b"Host: a\rX: b\r\n"), 400),
    "bare LF between headers": (get(b"Host: a\nX: b\r\n"), 400),
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LF ends the head": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "only bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare CR after the request line": (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    "header without name": (get(HOST + b": x\r\n"), 400),
    "header without colon": (get(HOST + b"foo\r\n"), 400),
    "high byte in a name": (get(HOST + b"f\xffo: x\r\n"), 400),
    "two hosts": (get(HOST + b"Host: b\r\n"), 400),
    "two equal hosts": (get(HOST + HOST), 400),
    "two authorizations": (get(HOST + b"Authorization: a\r\nauthorization: b\r\n"), 400),
    "too many headers": (get(HOST + b"".join(b"X%d: 1\r\n" % i for i in range(21))), 431),
    "too large a header": (get(HOST + b"X: " + b"y" * 3000 + b"\r\n"), 431),
    # target and host
    "no host": (get(b"X: 1\r\n"), 400),
    "empty host": (get(b"Host: \r\n"), 400),
    "host list": (get(b"Host: a, b\r\n"), 400),
    "host with path": (get(b"Host: a/b\r\n"), 400),
    "host with credentials": (get(b"Host: u@a\r\n"), 400),
    "absolute target with another host": (get(HOST, b"GET http://b/x HTTP/1.1"), 400),
    "absolute target with credentials": (get(HOST, b"GET http://u@a/x HTTP/1.1"), 400),
    "absolute target of another scheme": (get(HOST, b"GET ftp://a/x HTTP/1.1"), 400),
    "asterisk for GET": (get(HOST, b"GET * HTTP/1.1"), 400),
    "authority target": (get(HOST, b"GET a:80 HTTP/1.1"), 400),
    "fragment": (get(HOST, b"GET /a#b HTTP/1.1"), 400),
    "high byte in the target": (get(HOST, b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "NUL in the target": (get(HOST, b"GET /\x00 HTTP/1.1"), 400),
    "tab in the request line": (get(HOST, b"GET\t/ HTTP/1.1"), 400),
    "target too long": (get(HOST, b"GET /" + b"a" * 2100 + b" HTTP/1.1"), 414),
    # methods, versions, protocols
    "CONNECT": (get(HOST, b"CONNECT a:1 HTTP/1.1"), 501),
    "TRACE": (get(HOST, b"TRACE / HTTP/1.1"), 501),
    "method in small letters": (get(HOST, b"get / HTTP/1.1"), 400),
    "upgrade to websocket": (get(HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n"), 501),
    "upgrade to h2c": (post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", b"abc"), 501),
    "HTTP/0.9 without version": (b"GET /\r\n\r\n", 505),
    "HTTP/0.9": (get(HOST, b"GET / HTTP/0.9"), 505),
    "HTTP/1.2": (get(HOST, b"GET / HTTP/1.2"), 505),
    "HTTP/2.0": (get(HOST, b"GET / HTTP/2.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "protocol in small letters": (get(HOST, b"GET / http/1.1"), 400),
    "a TLS hello": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400),
    "unknown expectation": (post(b"Expect: 200-ok\r\nContent-Length: 3\r\n", b"abc"), 417),
}


async def exchange(data: bytes) -> tuple[bytes, list[str]]:
    seen: list[str] = []

    def handler(request) -> None:
        seen.append(request.path)
        request.response.send(200, [], b"served")

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = HttpServer(handler, limits=LIMITS)
    await server.start(sock)
    try:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    finally:
        await server.drain(0)
    return answer, seen


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_request_is_refused_and_nothing_after_it_is_served(name):
    data, status = REFUSED[name]
    answer, seen = uvloop.run(exchange(data + get(HOST, b"GET /smuggled HTTP/1.1")))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head
    assert answer.count(b"HTTP/1.1") == 1 + body.count(b"HTTP/1.1")
    assert seen == []


@pytest.mark.parametrize("name", REFUSED)
def test_the_refusal_does_not_depend_on_how_the_bytes_are_split(name):
    data, status = REFUSED[name]
    reader = RequestReader(LIMITS, Buffered())
    for i in range(len(data)):
        reader.feed(data[i : i + 1])
    assert reader.refusal is not None
    assert reader.refusal.status == status
    assert not reader.complete


@pytest.mark.parametrize(
    ("data", "path", "host"),
    [
        (get(HOST, b"GET http://a/x?q HTTP/1.1"), "/x", "a"),
        (get(HOST, b"GET HTTP://A?q HTTP/1.1"), "/", "a"),
        (get(b"", b"GET http://b:81/x HTTP/1.0"), "/x", "b:81"),
        (get(b"Host: [::1]:8000\r\n"), "/", "[::1]:8000"),
        (get(HOST, b"OPTIONS * HTTP/1.1"), "*", "a"),
        (b"\r\n" + get(HOST), "/", "a"),
    ],
)
def test_unusual_but_clear_requests_are_read(data, path, host):
    reader = RequestReader(LIMITS, Buffered())
    reader.feed(data)
    request = reader.complete.popleft()
    assert (request.path, request.headers["host"]) == (path, host)


def test_a_trailer_does_not_become_a_header_of_this_or_the_next_request():
    reader = RequestReader(LIMITS, Buffered())
    reader.feed(post(TE, b"3;ext=1\r\nabc\r\n0\r\nAuthorization: stolen\r\nHost: b\r\n\r\n") + get(HOST))
    first, second = reader.complete
    assert first.body == b"abc"
    assert "authorization" not in first.headers
    assert (second.headers, second.body) == ({"host": "a"}, b"")


def test_endless_chunk_extensions_and_trailers_are_cut_off():
    for framing in (b"1;" + b"x" * 100, b"0\r\nX: " + b"y" * 100):
        reader = RequestReader(LIMITS, Buffered())
        reader.feed(post(TE))
        reader.feed(framing)
        for _ in range(40):
            reader.feed(b"z" * 100)
        assert reader.refusal is not None
        assert reader.refusal.status == 431


def test_a_request_after_connection_close_is_not_served():
    answer, seen = uvloop.run(exchange(get(HOST + b"Connection: close\r\n") + get(HOST, b"GET /smuggled HTTP/1.1")))
    assert seen == ["/"]
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.endswith(b"served")


def test_a_valid_request_before_a_refused_one_is_answered_first():
    answer, seen = uvloop.run(exchange(get(HOST, b"GET /ok HTTP/1.1") + get(b"Host : a\r\n")))
    assert seen == ["/ok"]
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"servedHTTP/1.1 400 " in answer
