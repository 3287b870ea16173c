"""Whose answers are whose: an independent model of sameness against the key, over hostile pairs of requests."""

from __future__ import annotations

import json
import random
import unicodedata
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from noria.contracts.exchange import Exchange
from noria.contracts.release import Caching, Endpoint, Key, Release
from noria.gateway.sameness import NOT_COUNTED, SPELT_OUT, Sameness, wishes

SECRET = b"k" * 32
ENDPOINT = Endpoint("m", "openai_compatible", "gpt", url="http://one/v1")
RELEASE = Release("r1:a", "main", "app", (ENDPOINT,))


def body(text: str) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(text.encode(), type=dict[str, msgspec.Raw])


def exchange(fields: dict[str, msgspec.Raw] | str = '{"model":"app","messages":[]}', **more: Any) -> Exchange:
    fields = body(fields) if isinstance(fields, str) else fields
    return Exchange("i", "t", "s", more.pop("tenant", "local"), more.pop("kind", "chat"), "app", False, fields, 0, **more)


def key_of(x: Exchange, release: Release = RELEASE, **caching: Any) -> bytes | None:
    same = Sameness(release, Caching(sampled=True, **caching), SECRET)
    prefix = same.prefix(x)
    return None if prefix is None else same.key(x, prefix)


# -- what counts ------------------------------------------------------------------------------------


def test_the_order_of_fields_does_not_count():
    assert key_of(exchange('{"model":"app","a":1,"b":2}')) == key_of(exchange('{"b":2,"model":"app","a":1}'))


@pytest.mark.parametrize("name", sorted(NOT_COUNTED | SPELT_OUT))
def test_fields_that_cannot_change_the_answer_do_not_count(name):
    assert key_of(exchange(f'{{"model":"app","{name}":"x"}}')) == key_of(exchange('{"model":"app"}'))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1}', '{"a":1.0}'),
        ('{"a":1}', '{"a":"1"}'),
        ('{"a":1}', '{"a":true}'),
        ('{"a":null}', "{}"),
        ('{"a":{"x":1,"y":2}}', '{"a":{"y":2,"x":1}}'),
        ('{"a":{"x":1,"x":2}}', '{"a":{"x":2}}'),
        ('{"a":"é"}', '{"a":"e\u0301"}'),
        ('{"a":"ﬁ"}', '{"a":"fi"}'),
        ('{"a":"A"}', '{"a":"\uff21"}'),
        ('{"a":"x"}', '{"a":"x "}'),
        ('{"ab":"c"}', '{"a":"bc"}'),
        ('{"a":"1","b":"2"}', '{"a":"1\\",\\"b\\":\\"2"}'),
        ('{"a":[1,2]}', '{"a":[12]}'),
        ('{"a":1,"b":1}', '{"a":1}'),
        ('{"unknown_to_us":1}', "{}"),
    ],
)
def test_whatever_could_change_the_answer_counts(one, other):
    assert key_of(exchange(one)) != key_of(exchange(other))


@pytest.mark.parametrize(
    "other",
    [
        replace(RELEASE, id="r1:b"),
        replace(RELEASE, app="other"),
        replace(RELEASE, name="canary"),
        replace(RELEASE, route=(replace(ENDPOINT, url="http://two/v1"),)),
        replace(RELEASE, route=(replace(ENDPOINT, key="env:OTHER"),)),
        replace(RELEASE, route=(ENDPOINT, ENDPOINT)),
    ],
    ids=["id", "app", "name", "url", "credentials", "fallback"],
)
def test_another_release_has_answers_of_its_own(other):
    assert key_of(exchange()) != key_of(exchange(), other)


def test_the_kind_the_dialect_and_the_tenant_count():
    variants = [exchange(), exchange(kind="completion"), exchange(dialect="anthropic"), exchange(tenant="other")]
    assert len({key_of(x) for x in variants}) == 4


def test_the_key_is_useless_without_the_workers_secret():
    one, two = (Sameness(RELEASE, Caching(), s) for s in (SECRET, b"z" * 32))
    x = exchange()
    assert one.key(x, one.prefix(x)) != two.key(x, two.prefix(x))


def test_what_is_no_chat_is_not_kept():
    assert key_of(exchange(kind="embedding")) is None


def test_a_request_with_a_native_form_is_not_kept():
    assert key_of(exchange(native=body('{"x":1}'))) is None


@pytest.mark.parametrize("written", ["0", "0.0", "null"])
def test_greedy_requests_are_kept(written):
    same = Sameness(RELEASE, Caching(), SECRET)
    assert same.prefix(exchange(f'{{"temperature":{written}}}')) is not None


@pytest.mark.parametrize("written", ["0.1", "1", "0e0", '"0"'])
def test_others_only_where_the_setting_says_so(written):
    x = exchange(f'{{"temperature":{written}}}')
    assert Sameness(RELEASE, Caching(), SECRET).prefix(x) is None
    assert Sameness(RELEASE, Caching(sampled=True), SECRET).prefix(x) is not None


def test_the_releases_own_temperature_counts_as_stated():
    warm = replace(RELEASE, params={"temperature": 0.8})
    assert Sameness(warm, Caching(), SECRET).prefix(exchange()) is None
    assert Sameness(warm, Caching(), SECRET).prefix(exchange('{"temperature":0}')) is not None


# -- who shares -------------------------------------------------------------------------------------

KEYS = [
    None,
    Key("k1", "h1", org="o", team="t", user="u"),
    Key("k2", "h2", org="o", team="t", user="v"),
    Key("k3", "h3", org="o", team="s", user="u"),
    Key("k4", "h4", org="p", team="t"),
    Key("t", "h5"),
]


@pytest.mark.parametrize(
    ("scope", "shared"),
    [("key", []), ("team", [(1, 2)]), ("app", [(a, b) for a in range(6) for b in range(a + 1, 6)])],
)
def test_a_scope_shares_exactly_what_it_says(scope, shared):
    keys = [key_of(exchange(key=k), scope=scope) for k in KEYS]
    assert [(a, b) for a in range(6) for b in range(a + 1, 6) if keys[a] == keys[b]] == shared


def test_the_scope_of_users_needs_one():
    assert key_of(exchange(key=KEYS[4]), scope="user") is None
    assert key_of(exchange(), scope="user") is None
    one, two = (exchange(key=KEYS[4], subject=s) for s in ("ann", "bob"))
    assert key_of(one, scope="user") != key_of(two, scope="user")
    assert key_of(exchange(key=KEYS[1], subject="ann"), scope="user") != key_of(
        exchange(key=KEYS[2], subject="ann"), scope="user"
    )


# -- hostile pairs ----------------------------------------------------------------------------------

TEXTS = [
    "",
    "a",
    "ab",
    "b",
    "é",
    "e\u0301",
    "ﬁ",
    "fi",
    "\x00",
    "1",
    "1.0",
    "key",
    "k1",
    "app",
    '","',
    "\\",
    "世",
    "世\u200b",
    "\U0001f600",
]
VALUES = ["1", "1.0", "1e0", "-0", "0", "null", "true", '"1"', "[]", "{}", "[1,[2]]", "[[1],2]", '{"a":1,"a":2}', '{"a":2}']
NAMES = ["a", "b", "ab", "messages", "tools", "temperature", "user", "metadata", "stream", "model"]
TENANTS = ["local", "loca", "l", "", "local\x00", "locall"]


def probe(dice: random.Random) -> Exchange:
    """A request made of pieces that are easily taken for each other."""
    fields: dict[str, msgspec.Raw] = {}
    for _ in range(dice.randrange(4)):
        text = dice.choice(TEXTS) + dice.choice(TEXTS)
        value = dice.choice(VALUES) if dice.random() < 0.5 else json.dumps(text, ensure_ascii=dice.random() < 0.5)
        name = dice.choice(NAMES) if dice.random() < 0.8 else dice.choice(TEXTS) + dice.choice(NAMES)
        fields[name] = msgspec.Raw(value.encode())
    key = dice.choice(KEYS)
    if key is not None and dice.random() < 0.5:
        key = replace(key, org=dice.choice(TEXTS), team=dice.choice(TEXTS), user=dice.choice(TEXTS))
    return exchange(
        fields, tenant=dice.choice(TENANTS), key=key, subject=dice.choice(["", "ann", "bob", "an"]),
        dialect=dice.choice(["openai", "anthropic"]), kind=dice.choice(["chat", "completion"]),
    )  # fmt: skip


def mutated(x: Exchange, dice: random.Random) -> Exchange:
    """`x` with one thing moved, glued, renamed, normalised or given to somebody else."""
    fields = dict(x.body)
    names = list(fields)
    what = dice.randrange(7)
    if what == 0 and len(names) > 1:  # the order of the fields
        return replace(x, body={n: fields[n] for n in reversed(names)})
    if what == 1 and names:  # a byte moves from the name into the value
        name = dice.choice(names)
        fields[name[:-1]] = msgspec.Raw(json.dumps(name[-1:] + bytes(fields.pop(name)).decode()).encode())
    elif what == 2 and names:
        name = dice.choice(names)
        form = dice.choice(["NFC", "NFD", "NFKC"])
        fields[name] = msgspec.Raw(unicodedata.normalize(form, bytes(fields[name]).decode()).encode())
    elif what == 3:
        return replace(x, key=dice.choice(KEYS))
    elif what == 4:
        return replace(x, tenant=dice.choice(TENANTS), subject=dice.choice(["", "ann"]))
    elif what == 5:
        fields[dice.choice(NAMES)] = msgspec.Raw(dice.choice(VALUES).encode())
    elif names:
        del fields[dice.choice(names)]
    return replace(x, body=fields)


def who_of(x: Exchange, scope: str) -> Any:
    """Independent of the code: who may share an answer."""
    key = (x.key.id, x.key.org, x.key.team, x.key.user) if x.key else None
    if scope == "app":
        return "all"
    if scope == "team" and key and key[2]:
        return "team", key[1], key[2]
    if scope == "user":
        if x.subject:
            return "subject", key and key[0], x.subject
        return ("user", *key[1:]) if key and key[3] else None
    return "key", key and key[0]


def identity_of(x: Exchange, scope: str) -> Any:
    """Independent of the code: what an answer depends on, as plain values."""
    fields = frozenset((n, bytes(v)) for n, v in x.body.items() if n not in NOT_COUNTED | SPELT_OUT)
    return x.tenant, x.kind, x.dialect, who_of(x, scope), fields


def prove(count: int, seed: int) -> None:
    dice = random.Random(seed)
    seen: dict[str, dict[bytes, Any]] = {s: {} for s in ("key", "user", "team", "app")}
    sames = {s: Sameness(RELEASE, Caching(sampled=True, scope=s), SECRET) for s in seen}
    shared = 0
    x = probe(dice)
    for _ in range(count):
        x = probe(dice) if dice.random() < 0.4 else mutated(x, dice)
        scope = dice.choice(list(seen))
        prefix = sames[scope].prefix(x)
        if prefix is None:
            assert who_of(x, scope) is None
            continue
        key, identity = sames[scope].key(x, prefix), identity_of(x, scope)
        before = seen[scope].setdefault(key, identity)
        assert before == identity, "two requests that are not the same have one key"
        shared += before is not identity
        if len(seen[scope]) > 200_000:
            seen[scope].clear()
    assert shared > count // 100, "the probes must meet real repetitions too"
    for scope, keys in seen.items():
        assert len({repr(i) for i in keys.values()}) == len(keys), f"one request has two keys under {scope}"


def test_ten_thousand_hostile_requests_never_share_a_key():
    prove(10_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_hostile_requests_never_share_a_key():
    for seed in range(10):
        prove(100_000, seed=100 + seed)


# -- Cache-Control ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "read", "store"),
    [
        ("", True, True),
        ("no-cache", False, True),
        ("No-Store", False, False),
        ("max-age=5", True, True),
        ("foo=1, ,bar", True, True),
    ],
)
def test_directives_say_whether_the_cache_is_read_and_filled(header, read, store):
    assert (wishes(header).read, wishes(header).store) == (read, store)


def test_numbers_are_read_and_broken_ones_are_the_strictest():
    assert wishes('max-age="60", min-fresh=5, only-if-cached') == (True, True, 60.0, 5.0, True)
    assert wishes("max-age=soon").max_age == 0
    assert wishes("min-fresh=-1").min_fresh == float("inf")
    assert wishes("max-age=²").max_age == 0
