"""Keys and the directory over stores in memory: one commit a change, with its event, in force when it returns."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from noria.app.definition import Definition, apply, build_snapshot
from noria.app.directory import Directories
from noria.app.keyring import Keyring, shown
from noria.app.last_used import LastUsed
from noria.app.registry import EVENT, Registry
from noria.contracts.error import Conflict, NotFound, RequestError
from noria.contracts.release import App, Endpoint, GuardRule, Release
from noria.contracts.tenancy import Owner
from noria.engines.memory import MemoryRecords
from noria.kit.ids import digest

SUPPORT = App("support", {"main": Release("r1:a", "main", "support", (Endpoint("gpt", "scripted", "x"),))}, {"main": 1.0})
STRICT = (GuardRule("secrets", "block"),)
HOUR = 3600 * 1_000_000_000


class Home:
    """A registry with a configuration, and what workers would get of it."""

    def __init__(self) -> None:
        self.records = MemoryRecords("memory://")
        self.registry = Registry(self.records, "local", self.refresh)
        self.directories = Directories(self.registry)
        self.ring = Keyring(self.registry, self.directories)
        self.refreshed = 0

    async def refresh(self) -> None:
        self.refreshed += 1

    async def start(self, **more: object) -> Home:
        given = {"guards": {"strict": STRICT}} | more
        await apply(self.records, "local", Definition("s", {"support": SUPPORT}, **given))
        return self

    async def snapshot(self):
        return await build_snapshot(self.records, "local")

    async def opened_by(self, text: str):
        return (await self.snapshot()).keys.get(digest(text.encode()))

    async def events(self) -> list[dict]:
        return [msgspec.msgpack.decode(r.value) for r in await self.records.scan("local", EVENT)]


@pytest.fixture
async def home() -> Home:
    made = await Home().start()
    await made.directories.add("org", "acme")
    await made.directories.add("team", "search", org="acme")
    await made.directories.add("team", "ads", org="acme")
    await made.directories.add("user", "ann", org="acme", teams=("search",))
    return made


async def test_a_snapshot_carries_whose_a_key_is_and_its_guard_but_no_metadata(home: Home) -> None:
    text, key = await home.ring.create(user="ann", guard_name="strict", tags={"env": "prod"}, metadata={"ticket": "1"})
    found = await home.opened_by(text)
    assert (found.org, found.team, found.user) == ("acme", "search", "ann")
    assert (found.guard, found.guard_name, found.tags, found.metadata) == (STRICT, "strict", {"env": "prod"}, {})
    assert key.guard == ()


async def test_rotation_keeps_the_id_and_both_texts_work_until_the_overlap_ends(home: Home) -> None:
    first, key = await home.ring.create(rpm=7)
    second, again = await home.ring.rotate(key.id, HOUR)
    assert again.id == key.id
    old, new = await home.opened_by(first), await home.opened_by(second)
    assert (old.id, old.rpm, new.id, new.rpm) == (key.id, 7, key.id, 7)
    assert new.expires_ns is None
    assert time.time_ns() < old.expires_ns <= time.time_ns() + HOUR


async def test_an_overlap_never_outlives_the_key(home: Home) -> None:
    end = time.time_ns() + HOUR // 2
    first, key = await home.ring.create(expires_ns=end)
    await home.ring.rotate(key.id, HOUR)
    assert (await home.opened_by(first)).expires_ns == end


async def test_rotation_without_overlap_ends_every_old_text(home: Home) -> None:
    first, key = await home.ring.create()
    second, _ = await home.ring.rotate(key.id, HOUR)
    third, _ = await home.ring.rotate(key.id, 0)
    assert [await home.opened_by(t) is None for t in (first, second, third)] == [True, True, False]


async def test_texts_in_overlap_are_bounded(home: Home) -> None:
    _, key = await home.ring.create()
    for _ in range(4):
        await home.ring.rotate(key.id, HOUR)
    with pytest.raises(RequestError) as e:
        await home.ring.rotate(key.id, HOUR)
    assert (e.value.status, e.value.code) == (409, "too_many_rotations")


async def test_a_revoked_key_is_gone_with_all_its_texts(home: Home) -> None:
    first, key = await home.ring.create()
    await home.ring.rotate(key.id, HOUR)
    await home.ring.revoke(key.id)
    assert (await home.snapshot()).keys == {}
    assert await home.opened_by(first) is None


async def test_keys_stay_required_after_the_last_one_until_an_operator_opens(home: Home) -> None:
    assert (await home.snapshot()).keys_required is False
    _, key = await home.ring.create()
    with pytest.raises(RequestError) as e:
        await home.ring.open()
    assert e.value.status == 409
    await home.ring.revoke(key.id)
    assert (await home.snapshot()).keys_required is True
    await home.ring.open(actor="cli")
    assert (await home.snapshot()).keys_required is False
    last = (await home.events())[-1]
    assert (last["kind"], last["actor"]) == ("keys.opened", "cli")


async def test_a_key_made_before_keys_were_sticky_closes_the_door_when_it_goes(home: Home) -> None:
    from noria.app.definition import CLOSED
    from noria.contracts.port import Write

    _, key = await home.ring.create()
    await home.records.commit("local", [Write(*CLOSED, None)])
    await home.ring.revoke(key.id)
    assert (await home.snapshot()).keys_required is True


async def test_a_disabled_key_is_withheld_and_can_come_back(home: Home) -> None:
    text, key = await home.ring.create()
    await home.ring.update(key.id, withheld="disabled")
    assert (await home.opened_by(text)).withheld == "disabled"
    await home.ring.update(key.id, withheld="")
    assert (await home.opened_by(text)).withheld == ""


async def test_a_key_whose_guard_is_gone_is_withheld_not_unguarded(home: Home) -> None:
    text, _ = await home.ring.create(guard_name="strict")
    await home.start(guards={}, body_limit=5)
    assert (await home.opened_by(text)).withheld == "guard_missing"


async def test_what_a_key_names_must_exist(home: Home) -> None:
    for what, code in [
        ({"apps": ("suport",)}, "app_not_found"),
        ({"guard_name": "strikt"}, "guard_not_found"),
        ({"team": "serch"}, "team_not_found"),
    ]:
        with pytest.raises(NotFound) as e:
            await home.ring.create(**what)
        assert e.value.code == code
        assert "Did you mean" in e.value.text
    assert await home.ring.all() == []


async def test_a_change_names_what_it_changed_before_and_after(home: Home) -> None:
    _, key = await home.ring.create(name="ci", rpm=5)
    made = len(await home.events())
    assert await home.ring.update(key.id, rpm=5) == key
    assert len(await home.events()) == made, "nothing changed, nothing noted"
    await home.ring.update(key.id, rpm=9, actor="console")
    event = (await home.events())[-1]
    assert (event["kind"], event["actor"], event["target"]) == ("key.updated", "console", key.id)
    assert event["detail"] == {"before": {"rpm": 5}, "after": {"rpm": 9}}


async def test_no_event_and_no_listing_holds_a_hash_or_a_text(home: Home) -> None:
    first, key = await home.ring.create(user="ann")
    second, again = await home.ring.rotate(key.id, HOUR)
    await home.ring.update(key.id, name="x")
    await home.directories.remove("user", "ann", cascade=True)
    told = repr(await home.events()) + repr(shown(again))
    for secret in (first, second, key.hash, again.hash):
        assert secret not in told


async def test_whose_a_key_is_changes_as_a_whole(home: Home) -> None:
    _, key = await home.ring.create(user="ann")
    moved = await home.ring.update(key.id, team="ads")
    assert (moved.org, moved.team, moved.user) == ("acme", "ads", "")
    assert (await home.ring.update(key.id, name="y")).team == "ads"


async def test_an_old_key_may_be_changed_though_its_app_has_left(home: Home) -> None:
    _, key = await home.ring.create(apps=("support",))
    await apply(home.records, "local", Definition("s2", {}))
    assert (await home.ring.update(key.id, rpm=1)).apps == ("support",)


# -- directory ----------------------------------------------------------------------------------------------


async def test_names_are_given_once(home: Home) -> None:
    for kind, name in (("org", "acme"), ("team", "ads"), ("user", "ann")):
        with pytest.raises(RequestError) as e:
            await home.directories.add(kind, name)
        assert (e.value.status, e.value.code) == (409, f"{kind}_exists")


async def test_what_has_live_keys_goes_only_with_them(home: Home) -> None:
    text, key = await home.ring.create(team="search", name="ci")
    _, other = await home.ring.create(team="ads")
    with pytest.raises(RequestError) as e:
        await home.directories.remove("team", "search")
    assert (e.value.status, e.value.code) == (409, "keys_exist")
    assert "ci" in e.value.message
    assert await home.opened_by(text) is not None
    assert await home.directories.remove("team", "search", cascade=True) == [key.id]
    assert await home.opened_by(text) is None
    assert [k.id for k in await home.ring.all()] == [other.id]
    directory, _ = await home.directories.whole()
    assert list(directory.teams) == ["ads"]
    assert directory.users["ann"].teams == ()
    assert (await home.events())[-1]["detail"]["revoked"][0]["id"] == key.id


async def test_expired_keys_hold_nobody(home: Home) -> None:
    await home.ring.create(team="ads", expires_ns=1)
    assert len(await home.directories.remove("team", "ads")) == 1


async def test_an_organisation_goes_with_its_teams_and_their_keys_and_leaves_its_users(home: Home) -> None:
    await home.ring.create(user="ann")
    with pytest.raises(RequestError):
        await home.directories.remove("org", "acme")
    assert len(await home.directories.remove("org", "acme", cascade=True)) == 1
    directory, _ = await home.directories.whole()
    assert (directory.orgs, directory.teams) == ({}, {})
    assert (directory.users["ann"].org, directory.users["ann"].teams) == ("", ())


async def test_an_organisation_with_teams_and_no_keys_is_not_removed_by_the_way(home: Home) -> None:
    with pytest.raises(RequestError) as e:
        await home.directories.remove("org", "acme")
    assert e.value.code == "org_in_use"


async def test_a_user_leaves_a_team_only_with_the_keys_held_in_its_name(home: Home) -> None:
    _, key = await home.ring.create(user="ann")
    with pytest.raises(RequestError) as e:
        await home.directories.update("user", "ann", teams=("ads",))
    assert e.value.code == "keys_exist"
    await home.directories.update("user", "ann", teams=("ads",), cascade=True)
    assert key.id not in [k.id for k in await home.ring.all()]


async def test_a_key_cannot_be_made_for_a_team_that_goes_meanwhile(home: Home) -> None:
    """The key's commit and the removal fence each other: whichever comes second fails."""
    made = await asyncio.gather(home.ring.create(team="ads"), home.directories.remove("team", "ads"), return_exceptions=True)
    assert sum(isinstance(m, (Conflict, RequestError)) for m in made) == 1
    directory, versions = await home.directories.whole()
    fences = home.directories.fence(Owner("acme", "search"), directory, versions)
    await home.directories.remove("team", "search", cascade=True)
    with pytest.raises(Conflict):
        await home.records.commit("local", fences)


async def test_live_keys_are_counted_for_each_they_belong_to(home: Home) -> None:
    await home.ring.create(user="ann")
    await home.ring.create(team="ads")
    await home.ring.create(team="ads", expires_ns=1)
    assert await home.directories.counts() == {
        ("org", "acme"): 2, ("team", "search"): 1, ("user", "ann"): 1, ("team", "ads"): 1,
    }  # fmt: skip


# -- last used ----------------------------------------------------------------------------------------------


def row(key: str, at: int):
    from types import SimpleNamespace

    return SimpleNamespace(key=key, started_ns=at, tenant="local")


async def test_last_use_is_the_latest_is_kept_and_forgets_keys_that_are_gone(home: Home) -> None:
    _, key = await home.ring.create()
    used = LastUsed(home.records, "local")
    assert used.of(key.id) is None
    used.see([row(key.id, 50), row(key.id, 40), row("", 99), row("console", 60)])
    assert used.of(key.id) == 50
    await used.save()
    revision = await home.records.revision("local")
    await used.save()
    assert await home.records.revision("local") == revision, "nothing new, nothing written"
    other = LastUsed(home.records, "local")
    other.see([row(key.id, 45)])
    await other.save()
    assert other.of(key.id) == 50
    assert used.of("console") is None
    await home.ring.revoke(key.id)
    other.see([row("key_gone", 70)])
    await other.save()
    assert other.of(key.id) is None
