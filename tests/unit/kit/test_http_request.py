from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from noria.kit.http_request import Buffered, Limits, RequestReader

REQUESTS = (
    b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nEmpty:\r\nX-L: \xe9\r\nContent-Length: 5\r\n\r\nhello"
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;e=1\r\nhe\r\n3\r\nllo\r\n0\r\nT: 1\r\n\r\n"
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, len(REQUESTS)), max_size=12))
def test_any_splitting_of_the_bytes_gives_the_same_requests(cuts):
    reader = RequestReader(Limits(), Buffered())
    edges = [0, *sorted(cuts), len(REQUESTS)]
    for a, b in pairwise(edges):
        reader.feed(REQUESTS[a:b])
    assert [(r.method, r.path, r.query, r.headers, r.body) for r in reader.complete] == [
        ("POST", "/a", "b=c", {"host": "x", "empty": "", "x-l": "\xe9", "content-length": "5"}, b"hello"),
        ("GET", "/", "", {"host": "x"}, b""),
        ("POST", "/c", "", {"host": "x", "transfer-encoding": "chunked"}, b"hello"),
    ]


def test_too_many_pipelined_requests_end_in_a_refusal_after_the_first_ones():
    reader = RequestReader(Limits(), Buffered())
    reader.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 100)
    assert len(reader.complete) == 64
    assert reader.refusal is not None
