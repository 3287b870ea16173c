"""The rules of tenancy: who belongs to whom, and what a key may be limited to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.contracts.error import NotFound, RequestError
from noria.contracts.tenancy import Org, Owner, Team, User
from noria.govern import tenancy
from noria.govern.tenancy import Directory, resolve

ACME = Directory(
    orgs={"acme": Org("acme"), "other": Org("other")},
    teams={
        "search": Team("search", "acme"),
        "ads": Team("ads", "acme"),
        "elsewhere": Team("elsewhere", "other"),
        "free": Team("free"),
    },
    users={
        "ann": User("ann", "acme", ("search",)),
        "bob": User("bob", "acme", ("search", "ads")),
        "eve": User("eve", "", ("search", "elsewhere")),
        "solo": User("solo", "acme"),
        "nobody": User("nobody"),
    },
)


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        (Owner(), Owner()),
        (Owner(org="acme"), Owner("acme")),
        (Owner(team="search"), Owner("acme", "search")),
        (Owner(team="free"), Owner("", "free")),
        (Owner(user="ann"), Owner("acme", "search", "ann")),
        (Owner(user="bob", team="ads"), Owner("acme", "ads", "bob")),
        (Owner(user="eve", org="other"), Owner("other", "elsewhere", "eve")),
        (Owner(user="solo"), Owner("acme", "", "solo")),
        (Owner(user="nobody"), Owner("", "", "nobody")),
        (Owner(user="nobody", org="acme"), Owner("acme", "", "nobody")),
    ],
)
def test_what_is_left_out_follows(given: Owner, whole: Owner) -> None:
    assert resolve(given, ACME) == whole


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (Owner(user="bob"), "team_required"),
        (Owner(user="eve"), "team_required"),
        (Owner(user="ann", team="ads"), "not_a_member"),
        (Owner(user="ann", org="other"), "not_a_member"),
        (Owner(team="search", org="other"), "not_a_member"),
        (Owner(team="free", org="acme"), "not_a_member"),
        (Owner(team="serch"), "team_not_found"),
        (Owner(org="acmee"), "org_not_found"),
        (Owner(user="an"), "user_not_found"),
    ],
)
def test_what_does_not_belong_together_is_refused(given: Owner, code: str) -> None:
    with pytest.raises(RequestError) as e:
        resolve(given, ACME)
    assert e.value.code == code


def test_a_name_that_is_not_there_gets_the_nearest() -> None:
    with pytest.raises(NotFound) as e:
        resolve(Owner(team="serch"), ACME)
    assert "'search'" in e.value.text


@st.composite
def directories(draw: st.DrawFn) -> Directory:
    orgs = {n: Org(n) for n in draw(st.sets(st.sampled_from("ABC")))}
    teams = {n: Team(n, draw(st.sampled_from(["", *orgs]))) for n in draw(st.sets(st.sampled_from("abcde")))}
    users = {}
    for name in draw(st.sets(st.sampled_from("xyz"))):
        org = draw(st.sampled_from(["", *orgs]))
        fit = sorted(t.name for t in teams.values() if not org or t.org == org)
        users[name] = User(name, org, tuple(sorted(draw(st.sets(st.sampled_from(fit))))) if fit else ())
    return Directory(orgs, teams, users)


@given(directories(), st.sampled_from(["", *"ABC"]), st.sampled_from(["", *"abcde"]), st.sampled_from(["", *"xyz"]))
def test_a_resolved_owner_is_consistent_keeps_what_was_given_and_is_stable(
    made: Directory, org: str, team: str, user: str
) -> None:
    for u in made.users.values():
        tenancy.check_user(u, made)
    given = Owner(org, team, user)
    try:
        whole = resolve(given, made)
    except RequestError:
        return
    assert (org or whole.org, team or whole.team, whole.user) == (whole.org, whole.team, user), "nothing given is changed"
    assert not whole.org or whole.org in made.orgs
    if whole.team:
        assert made.teams[whole.team].org == whole.org, "a team's spending counts under its organisation"
    if whole.user and whole.team:
        assert whole.team in made.users[whole.user].teams
    if whole.user and made.users[whole.user].org:
        assert whole.org == made.users[whole.user].org
    if whole.user and not whole.team:
        assert not [t for t in made.users[whole.user].teams if not org or made.teams[t].org == org], "no team is evaded"
    assert resolve(whole, made) == whole


def test_a_user_of_an_organisation_is_in_teams_of_it_alone() -> None:
    tenancy.check_user(User("z", "", ("search", "elsewhere")), ACME)
    with pytest.raises(RequestError):
        tenancy.check_user(User("z", "acme", ("elsewhere",)), ACME)


@pytest.mark.parametrize("name", ["acme", "ann@example.com", "a.b-c_d+e", "0", "x" * 100])
def test_names_that_are_names(name: str) -> None:
    tenancy.check_name("user", name)


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "a:b", "-a", "ä", "x" * 101, "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RequestError) as e:
        tenancy.check_name("user", name)
    assert e.value.param == "name"


@pytest.mark.parametrize("path", ["/v1", "/v1*", "/v1/files*", "/v1/chat/completions", "/v1/models/"])
def test_endpoints_that_are_paths(path: str) -> None:
    tenancy.check_endpoints((path,))


@pytest.mark.parametrize("path", ["", "*", "/", "/api/keys", "v1/files", "/v1/*/x", "/v1/a b", "/v2*", "/v1x", "/v1/%66"])
def test_endpoints_that_are_none(path: str) -> None:
    with pytest.raises(RequestError):
        tenancy.check_endpoints((path,))


@pytest.mark.parametrize("text", ["nk-abc…wxyz", "sk-abc...", "sk-***", "key nk-abc***z"])
def test_a_masked_key_is_not_saved_back(text: str) -> None:
    with pytest.raises(RequestError) as e:
        tenancy.check_metadata({"upstream": text})
    assert e.value.code == "masked_value"


def test_a_key_is_not_saved_as_a_word() -> None:
    with pytest.raises(RequestError) as e:
        tenancy.check_plain("name", "it is nk-" + "a" * 43)
    assert e.value.code == "secret_value"
    assert "aaaa" not in e.value.text
    tenancy.check_plain("name", "task-force of nk-based things…")
