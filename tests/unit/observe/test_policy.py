"""Policies that do nothing are found; those that wait for their callers are not."""

from noria.contracts.release import App, Budget, Endpoint, GuardRule, Limit, Release, Snapshot
from noria.observe.policy import ENOUGH, configured, silent


def snapshot(**more):
    e = (Endpoint("e", "scripted", "m"),)
    guarded = Release("r1:a", "a", "support", e, guard=(GuardRule("pii", "mask"),))
    unused = Release("r1:b", "b", "support", e, guard=(GuardRule("secrets", "block"),))
    apps = {"support": App("support", {"a": guarded, "b": unused}, {"a": 1.0, "b": 0.0})}
    return Snapshot("c1:x", "local", 1, apps, {}, **more)


def test_policies_of_releases_without_traffic_and_of_single_callers_are_not_expected_to_run():
    limits = (Limit("l", "tenant"), Limit("k", "key:key_1"), Limit("u", "user:ann"))
    budgets = (Budget("hard", "app:support", 1), Budget("soft", "tenant", 1, hard=False))
    found = configured(snapshot(limits=limits, budgets=budgets))
    assert found == {"guard:support/pii": ("support",), "limit:l": (), "budget:hard": ("support",)}


def test_a_policy_is_silent_once_enough_answers_have_passed_it():
    answers = {"support": ENOUGH}
    assert silent(snapshot(), {"guard:support/pii": (1, 0)}, answers) == []
    assert len(silent(snapshot(), {}, answers)) == 1
    assert silent(snapshot(), {}, {"support": ENOUGH - 1, "other": 100}) == []


def test_a_limit_of_an_app_that_is_not_there_is_told_at_once():
    found = silent(snapshot(limits=(Limit("typo", "app:suport"),)), {"guard:support/pii": (1, 0)}, {})
    assert ["limit:typo" in text for text in found] == [True]
