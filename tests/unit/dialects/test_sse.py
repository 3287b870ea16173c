import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.dialects import sse
from noria.dialects.sse import FrameSplitter, data_of, event_of

STREAMS = st.lists(
    st.sampled_from(
        [b"data: a", b": ping", b"event: x", b"data: \xe4\xbd\xa0", b"\n", b"\n", b"\r\n", b"\r\n", b"\r", b"\r", b"\n\n"]
    ),
    max_size=24,
).map(b"".join)


def split(stream: bytes, cuts: list[int]) -> tuple[list[bytes], bytes]:
    splitter = FrameSplitter()
    frames: list[bytes] = []
    last = 0
    for cut in [*sorted(c % (len(stream) + 1) for c in cuts), len(stream)]:
        frames += splitter.feed(stream[last:cut])
        last = cut
    return frames, splitter.rest()


@settings(max_examples=200, derandomize=True)
@given(STREAMS, st.lists(st.integers(0, 1000), max_size=12))
def test_frames_and_rest_are_the_input_whatever_the_chunking(stream, cuts):
    frames, rest = split(stream, cuts)
    assert b"".join(frames) + rest == stream
    assert (frames, rest) == split(stream, list(range(len(stream))))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_line_ending_ends_a_frame(end):
    stream = b"data: 1" + end * 2 + b"data: 2" + end * 2 + b"data: 3"
    frames, rest = split(stream, [])
    assert [data_of(f) for f in frames] == [b"1", b"2"]
    assert rest == b"data: 3"


def test_crlf_is_one_line_end_and_not_two():
    assert split(b"data: 1\r\ndata: 2\r\n\r\n", [])[0] == [b"data: 1\r\ndata: 2\r\n\r\n"]


def test_a_crlf_cut_in_the_middle_stays_with_its_frame():
    splitter = FrameSplitter()
    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\ndata") == [b"data: 1\r\n\r\n"]
    assert splitter.rest() == b"data"


def test_data_lines_are_joined_and_comments_have_none():
    assert data_of(b"event: x\ndata: a\ndata:b\n\n") == b"a\nb"
    assert data_of(b": keep-alive\n\n") is None
    assert data_of(b"data\n\n") == b""
    assert data_of(b"data:  two\n\n") == b" two"


def test_event_names_are_read():
    assert event_of(b"event: message_start\ndata: {}\n\n") == "message_start"
    assert event_of(b"data: {}\n\n") is None


@pytest.mark.parametrize("size", [1 << 20, 1 << 14])
def test_an_endless_frame_is_refused(size):
    splitter = FrameSplitter()
    for _ in range(sse.FRAME_LIMIT // size):
        splitter.feed(b"x" * size)
    with pytest.raises(ValueError, match="longer than"):
        splitter.feed(b"x")


def test_one_whole_frame_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="longer than"):
        FrameSplitter().feed(b"data: " + b"x" * sse.FRAME_LIMIT + b"\n\n")
