"""Exchanges for the tests of the transforms."""

import json

import msgspec
import pytest

from noria.contracts.exchange import Exchange
from noria.contracts.release import Prompt, Release


@pytest.fixture(scope="session")
def chat():
    """`chat(("user", "hi"), …, max_tokens=5, prompt="…")`."""

    def make(*messages, prompt=None, variables=None, release=None, kind="chat", **body):
        rows = [m if isinstance(m, dict) else {"role": m[0], "content": m[1]} for m in messages]
        raw = {k: msgspec.Raw(json.dumps(v).encode()) for k, v in {"messages": rows, **body}.items()}
        if prompt is not None:
            release = Release("r1:x", "a", "app", (), prompt=Prompt("p", prompt, "d"))
        return Exchange(
            id="x", trace="0" * 32, span="0" * 16, tenant="local", kind=kind, model="app", stream=False, body=raw, started_ns=0,
            release=release, variables=variables or {},
        )  # fmt: skip

    return make
