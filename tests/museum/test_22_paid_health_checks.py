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
APPS = {"idle": ("ok", "ok"), "ejecting": ("status-500", "ok"), "counted": ("status-500", "ok")}
"""What the upstream does for each of an app's two models; endpoints of their own, since what is known of one is shared."""


@pytest.fixture(scope="module")
def noria(serve_once, upstream):
    models = {
        f"{app}-{n}": MODELS | {"url": upstream.url, "model": kind}
        for app, kinds in APPS.items()
        for n, kind in enumerate(kinds)
    }
    return serve_once(json.dumps({"models": models, "apps": {app: {"model": [f"{app}-0", f"{app}-1"]} for app in APPS}}))


@pytest.mark.parametrize("app", ["idle", "ejecting"])
def test_an_idle_service_sends_nothing_to_its_models_even_where_one_is_ejected(noria, upstream, http, app) -> None:
    for _ in range(6):
        body = {"model": app, "messages": [{"role": "user", "content": "hi"}]}
        assert http(f"{noria.url}/v1/chat/completions", body)[0] == 200
    for path in ("/readyz", "/metrics", "/v1/models"):
        assert http(noria.url + path, b"", method="GET")[0] == 200
    before = len(upstream.seen)
    time.sleep(2.5)
    assert len(upstream.seen) == before


def test_only_as_many_calls_arrive_as_callers_and_retries_explain(noria, upstream, http) -> None:
    before = len(upstream.seen)
    for _ in range(30):
        body = {"model": "counted", "messages": [{"role": "user", "content": "hi"}]}
        assert http(f"{noria.url}/v1/chat/completions", body)[0] == 200
    assert len(upstream.seen) - before == 30 + 5, "30 callers, and the five failures that ejected the first"
