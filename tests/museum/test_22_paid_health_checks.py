"""Museum 22: health checks on the bill.

To find out whether a model was up, gateways sent it real prompts at intervals, and their users paid for them (litellm PR#7000).

Noria sends nothing to find out, unless the configuration asks for it (`health` of a model, and then a completion is a trace
with its price): what it knows of an endpoint are the answers to its callers, and the trial of one that was
out is a caller's own request.
"""

from __future__ import annotations

import json
import time

import pytest

MODELS = {"provider": "openai_compatible", "timeouts": {"connect": 1, "first": 2}}


@pytest.mark.parametrize("kind", ["ok", "status-500"])
def test_an_idle_service_sends_nothing_to_its_models_even_where_one_is_ejected(serve, upstream, http, kind) -> None:
    models = {n: MODELS | {"url": upstream.url, "model": kind if n == "first" else "ok"} for n in ("first", "second")}
    noria = serve(json.dumps({"models": models, "apps": {"app": {"model": ["first", "second"]}}}))
    for _ in range(6):
        body = {"model": "app", "messages": [{"role": "user", "content": "hi"}]}
        assert http(f"{noria.url}/v1/chat/completions", body)[0] == 200
    for path in ("/readyz", "/metrics", "/v1/models"):
        assert http(noria.url + path, b"", method="GET")[0] == 200
    before = len(upstream.seen)
    time.sleep(2.5)
    assert len(upstream.seen) == before


def test_only_as_many_calls_arrive_as_callers_and_retries_explain(serve, upstream, http) -> None:
    models = {n: MODELS | {"url": upstream.url, "model": kind} for n, kind in (("bad", "status-500"), ("good", "ok"))}
    noria = serve(json.dumps({"models": models, "apps": {"app": {"model": ["bad", "good"]}}}))
    before = len(upstream.seen)
    for _ in range(30):
        body = {"model": "app", "messages": [{"role": "user", "content": "hi"}]}
        assert http(f"{noria.url}/v1/chat/completions", body)[0] == 200
    assert len(upstream.seen) - before == 30 + 5, "30 callers, and the five failures that ejected the first"
