"""A release that was made while the service ran, in noria.yaml: the same release when it is read again, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from noria.app.added import Registered
from noria.app.house import identify
from noria.app.release_export import Source, exported
from noria.app.stores import define
from noria.contracts.error import RequestError
from noria.contracts.release import Endpoint, Prompt, Release
from noria.kit.ids import digest
from noria.release.registry import Added, Parts, derive
from noria.settings import loads

TEXT = """\
# ours
models:
  small: {provider: scripted, model: small, timeouts: {first: 9}}   # the small one
prompts:
  short: {text: "Be brief."}
apps:
  # what customers call
  support: {model: small, prompt: short, memory: 4, cache: {ttl: 60}}
"""
SHA = "ab" * 32
TINY = Endpoint(
    "tiny+12345678", "tiny", "tiny-abab", digests={"weights": f"sha256:{SHA}"},
    options={"artifact": "a1:" + "12" * 32, "file": "/x/tiny.model", "sha256": SHA},
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    path = tmp_path / "noria.yaml"
    path.write_text(TEXT)
    monkeypatch.setattr("noria.app.stores.digest_of", lambda *_: f"sha256:{SHA}")
    loaded = loads(TEXT.encode(), name="noria.yaml", folder=tmp_path)
    return Source(path, loaded, Registered(), define(loaded), define, {"main": 0.0, "tuned": 100.0})


def made(source: Source, parent: Release, **parts: Any) -> tuple[Release, Source]:
    release = derive(parent, "tuned", Parts(**parts), identify)
    added = {**source.known.added.get("support", {}), release.name: Added(release, 0, "refresh:1", parent.id)}
    return release, replace(source, known=Registered(added={"support": added}))


def again(source: Source, text: str) -> Any:
    return define(loads(text.encode(), name="noria.yaml", folder=source.path.parent)).apps["support"]


def test_a_short_form_is_spelt_out_and_comments_stay(source: Source) -> None:
    main = source.stored.apps["support"].releases["main"]
    release, source = made(source, main, model=TINY, params={"max_tokens": 8})
    found = exported(source, "support", release)
    assert all(said in found.text for said in ("# ours", "# the small one", "# what customers call"))
    app = again(source, found.text)
    assert {n: r.id for n, r in app.releases.items()} == {"main": main.id, "tuned": release.id}
    assert app.weights == {"main": 0.0, "tuned": 100.0}
    assert app.releases["tuned"].caching == main.caching
    assert "tiny-12345678" in found.added
    assert "small" not in found.added, "what the file has is not repeated"


def test_over_another_made_release_with_another_prompt(source: Source) -> None:
    main = source.stored.apps["support"].releases["main"]
    first, source = made(source, main, model=TINY)
    first = replace(first, name="first")
    source = replace(source, known=Registered(added={"support": {"first": Added(first, 0, "refresh:1", main.id)}}))
    release, source = made(source, first, prompt=Prompt("short", "Be long.", digest(b"Be long.")))
    found = exported(source, "support", release)
    app = again(source, found.text)
    assert app.releases["tuned"].id == release.id
    assert app.releases["main"].id == main.id, "the prompt of the file is another one, and stays"
    assert app.releases["tuned"].prompt.text == "Be long."


def test_what_cannot_be_written_is_refused(source: Source) -> None:
    main = source.stored.apps["support"].releases["main"]
    with pytest.raises(RequestError, match="already"):
        exported(source, "support", main)
    release, source = made(source, main, model=TINY)
    with pytest.raises(RequestError, match=r"not in .* any more"):
        exported(replace(source, known=Registered()), "support", release)
    odd = replace(release, memory=7)
    odd = replace(odd, id=identify(odd))
    with pytest.raises(RequestError, match="cannot be said"):
        exported(replace(source, known=Registered(added={"support": {"tuned": Added(odd, 0, "x", main.id)}})), "support", odd)
