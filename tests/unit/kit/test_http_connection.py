import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.kit.http_client import HttpClient
from noria.kit.http_connection import ClientConnection


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("get", "/", []),
        ("GET", "x", []),
        ("GET", "/a b", []),
        ("GET", "/a\r\nx: y", []),
        ("GET", "/\u20ac", []),
        ("GET", "/a#b", []),
        ("GET", "/", [("x", "1\r\ny: 2")]),
        ("GET", "/", [("host", "b")]),
        ("GET", "/", [("Transfer-Encoding", "chunked")]),
    ],
)
async def test_requests_that_could_split_a_message_are_refused_before_connecting(method, path, headers):
    client = HttpClient("http://127.0.0.1:1")
    with pytest.raises(ValueError):
        await client.send(method, path, headers, b"")


@pytest.mark.parametrize("url", ["ftp://a", "http://", "a:80", "http://u:p@a", "http://a/?q", "http://a/#f"])
def test_a_base_url_with_anything_odd_is_refused(url):
    with pytest.raises(ValueError, match="URL"):
        HttpClient(url)


STREAM = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nEmpty:\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;e=1\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nT: 1\r\n\r\n"
)


class Loopback:
    """A transport that plays an answer, cut at the given places, into the connection that wrote to it."""

    def __init__(self, connection, edges):
        self.connection = connection
        self.edges = edges
        self.closed = False

    def write(self, _):
        for a, b in pairwise(self.edges):
            if a != b:
                self.connection.data_received(STREAM[a:b])

    def is_closing(self):
        return self.closed

    def abort(self):
        self.closed = True

    def get_write_buffer_size(self):
        return 0


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_any_splitting_of_the_bytes_gives_the_same_answer(cuts, stream):
    async def play():
        client = HttpClient("http://a")
        loop = asyncio.get_running_loop()
        connection = ClientConnection(client, loop)
        connection.connection_made(Loopback(connection, [0, *sorted(cuts), len(STREAM)]))
        future = loop.create_future()
        got = []
        on_head = (lambda s, h: got.append) if stream else None
        connection.call((b"", b""), future, head_only=False, on_head=on_head, flow=None, total=loop.time() + 9)
        status, headers, body = await future
        assert (status, headers) == (200, [("empty", ""), ("x", "1"), ("transfer-encoding", "chunked")])
        assert (b"".join(got), body) == ((b"hello world", b"") if stream else (b"", b"hello world"))
        assert client.idle == 1

    asyncio.run(play())
