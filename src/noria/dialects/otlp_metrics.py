"""OTLP metrics in protobuf, as far as cumulative sums, gauges and histograms go (opentelemetry-proto 1.x, `metrics.proto`).

Written out by hand: it is three nested messages one way, and the core then carries no protobuf runtime. The official
classes decode every byte of it in `tests/unit/dialects/test_otlp_metrics.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

CONTENT_TYPE = "application/x-protobuf"
PATH = "/v1/metrics"
_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_CUMULATIVE = 2


class Point(msgspec.Struct, frozen=True):
    """One series at one time. Times are int64 ns UTC; a gauge has no `start_ns`."""

    attributes: Mapping[str, str]
    start_ns: int
    time_ns: int
    value: float | int = 0
    """The sum of a histogram, in the metric's unit."""
    buckets: Sequence[int] = ()
    """Counts by bucket, the overflow last."""
    bounds: Sequence[float] = ()


class Metric(msgspec.Struct, frozen=True):
    """One metric with its series. `sum` rises for ever; `unit` is UCUM."""

    name: str
    kind: Literal["sum", "gauge", "histogram"]
    unit: str
    description: str
    points: Sequence[Point]


class Scope(msgspec.Struct, frozen=True):
    """What has measured."""

    name: str
    version: str


def write_metrics(resource: Mapping[str, str], scope: Scope, metrics: Iterable[Metric]) -> bytes:
    """An `ExportMetricsServiceRequest`."""
    scoped = _message(1, _text(1, scope.name) + _text(2, scope.version))
    scoped += b"".join(_message(2, _metric(m)) for m in metrics)
    return _message(1, _message(1, _attributes(1, resource)) + _message(2, scoped))


def read_rejected(body: bytes) -> tuple[int, str]:
    """(points that were not taken, why) of an `ExportMetricsServiceResponse`. Raises `ValueError` for what is none."""
    count, why = 0, ""
    for field, value in _fields(body):
        if field == 1 and isinstance(value, bytes):
            for inner, told in _fields(value):
                if inner == 1 and isinstance(told, int):
                    count = told
                elif inner == 2 and isinstance(told, bytes):
                    why = told.decode("utf-8", "replace")
    return count, why


def _metric(metric: Metric) -> bytes:
    head = _text(1, metric.name) + _text(2, metric.description) + _text(3, metric.unit)
    if metric.kind == "histogram":
        points = b"".join(_message(1, _bucketed(p)) for p in metric.points)
        return head + _message(9, points + _number(2, _CUMULATIVE))
    points = b"".join(_message(1, _single(p)) for p in metric.points)
    if metric.kind == "gauge":
        return head + _message(5, points)
    return head + _message(7, points + _number(2, _CUMULATIVE) + _number(3, 1))


def _single(point: Point) -> bytes:
    value = _tag(6, _FIXED64) + struct.pack("<q", point.value) if isinstance(point.value, int) else _double(4, point.value)
    return _times(point) + value + _attributes(7, point.attributes)


def _bucketed(point: Point) -> bytes:
    counts = struct.pack(f"<{len(point.buckets)}Q", *point.buckets)
    bounds = struct.pack(f"<{len(point.bounds)}d", *point.bounds)
    count = _tag(4, _FIXED64) + struct.pack("<Q", sum(point.buckets))
    return (
        _times(point) + count + _double(5, float(point.value)) + _message(6, counts) + _message(7, bounds)
        + _attributes(9, point.attributes)
    )  # fmt: skip


def _times(point: Point) -> bytes:
    start = _tag(2, _FIXED64) + struct.pack("<Q", point.start_ns) if point.start_ns else b""
    return start + _tag(3, _FIXED64) + struct.pack("<Q", point.time_ns)


def _attributes(field: int, attributes: Mapping[str, str]) -> bytes:
    return b"".join(_message(field, _text(1, k) + _message(2, _text(1, v, empty=True))) for k, v in attributes.items())


# -- protobuf ---------------------------------------------------------------------------------------


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _message(field: int, body: bytes) -> bytes:
    return _tag(field, _LENGTH) + _varint(len(body)) + body


def _text(field: int, text: str, *, empty: bool = False) -> bytes:
    return _message(field, text.encode("utf-8", "replace")) if text or empty else b""


def _number(field: int, n: int) -> bytes:
    return _tag(field, _VARINT) + _varint(n)


def _double(field: int, value: float) -> bytes:
    return _tag(field, _FIXED64) + struct.pack("<d", value)


def _fields(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if wire == _LENGTH:
            size, at = _read_varint(data, at)
        else:
            size = {_FIXED64: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > len(data):
            raise ValueError("this is no protobuf message")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("this is no protobuf message")
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at
