"""OTLP metrics, decoded by the official protobuf classes."""

from __future__ import annotations

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from noria.dialects.otlp_metrics import Metric, Point, Scope, read_rejected, write_metrics

TEXT = st.text(max_size=20).filter(lambda s: s.isprintable())
INT64 = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(1, 2**63)
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), TEXT, max_size=3)
SINGLE = st.builds(Point, ATTRIBUTES, TIMES, TIMES, INT64 | st.floats(allow_nan=False))
BUCKETED = st.builds(
    Point, ATTRIBUTES, TIMES, TIMES, st.floats(allow_nan=False), st.lists(st.integers(0, 2**40), min_size=3, max_size=3),
    st.just((0.5, 1e9)),
)  # fmt: skip


def decoded(metrics: list[Metric], resource: dict[str, str] | None = None) -> ExportMetricsServiceRequest:
    data = write_metrics(resource or {}, Scope("s", "1"), metrics)
    made = ExportMetricsServiceRequest()
    assert made.ParseFromString(data) == len(data)
    assert not any(
        UnknownFieldSet(message) for message in (made, made.resource_metrics[0], made.resource_metrics[0].scope_metrics[0])
    )
    return made


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.sampled_from(["sum", "gauge", "histogram"]), TEXT, st.lists(SINGLE, max_size=3), st.lists(BUCKETED, max_size=3))
def test_every_field_arrives(kind, name, singles, bucketed) -> None:
    points = bucketed if kind == "histogram" else singles
    request = decoded([Metric(name, kind, "s", "what", points)], {"service.name": "noria", "empty": ""})
    (whole,) = request.resource_metrics
    assert {a.key: a.value.string_value for a in whole.resource.attributes} == {"service.name": "noria", "empty": ""}
    assert all(a.value.HasField("string_value") for a in whole.resource.attributes)
    (scoped,) = whole.scope_metrics
    assert (scoped.scope.name, scoped.scope.version) == ("s", "1")
    (metric,) = scoped.metrics
    assert (metric.name, metric.unit, metric.description, metric.WhichOneof("data")) == (name, "s", "what", kind)
    data = getattr(metric, kind)
    if kind != "gauge":
        assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert kind != "sum" or data.is_monotonic
    assert len(data.data_points) == len(points)
    for got, point in zip(data.data_points, points, strict=True):
        assert {a.key: a.value.string_value for a in got.attributes} == point.attributes
        assert (got.start_time_unix_nano, got.time_unix_nano) == (point.start_ns, point.time_ns)
        if kind == "histogram":
            assert (got.count, got.sum) == (sum(point.buckets), point.value)
            assert (list(got.bucket_counts), list(got.explicit_bounds)) == (list(point.buckets), list(point.bounds))
        else:
            assert getattr(got, got.WhichOneof("value")) == point.value


def test_what_a_collector_did_not_take_is_read() -> None:
    told = ExportMetricsServiceResponse(
        partial_success=ExportMetricsPartialSuccess(rejected_data_points=300, error_message="voll")
    )
    assert read_rejected(told.SerializeToString()) == (300, "voll")
    assert read_rejected(b"") == (0, "")


@pytest.mark.parametrize("body", [b"\x0a\xff", b"\xff" * 12, b"{}", b"\x0b", b"\x0a"])
def test_what_is_no_protobuf_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(ValueError, match="no protobuf"):
        read_rejected(body)
