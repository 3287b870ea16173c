"""The rules of tenancy, pure: which names are names, who may belong to whom, and what a key may be limited to.

Stored elsewhere (`app.directory`, `app.keyring`); nothing here waits or reads a clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from noria.contracts.error import NotFound, RequestError
from noria.contracts.tenancy import Org, Owner, Team, User
from noria.kit import labels

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}\Z")
"""Of an organisation, a team or a user; an e-mail address is one."""
_PATH = re.compile(r"/v1(/[A-Za-z0-9._~/-]*)?\*?\Z")
_SECRET = re.compile(r"\b(?:nk|na|sk)-[A-Za-z0-9_-]{20,}")
_MASK = re.compile(r"\b(?:nk|na|sk)-[A-Za-z0-9_-]*(?:…|\.{3}|\*{3})")
MOST_ENDPOINTS = 64
MOST_METADATA, LONGEST_METADATA = 32, 512


T = TypeVar("T")


@dataclass(frozen=True)
class Directory:
    """Everybody of a tenant, by name."""

    orgs: Mapping[str, Org] = field(default_factory=dict)
    teams: Mapping[str, Team] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)

    def org(self, name: str) -> Org:
        """The organisation. Raises `NotFound` with the nearest names."""
        return _found("org", name, self.orgs)

    def team(self, name: str) -> Team:
        """The team. Raises `NotFound` with the nearest names."""
        return _found("team", name, self.teams)

    def user(self, name: str) -> User:
        """The user. Raises `NotFound` with the nearest names."""
        return _found("user", name, self.users)


def _found(what: str, name: str, known: Mapping[str, T]) -> T:
    found = known.get(name)
    if found is None:
        raise NotFound.nearest(what, name, list(known), code=f"{what}_not_found")
    return found


def resolve(given: Owner, directory: Directory) -> Owner:
    """The whole owner of a key of which `given` says a part: a user's only team, a team's organisation, a user's own.

    Every name must exist and belong together, so that what the key spends is counted under all that it falls under.
    Raises `NotFound`, or `RequestError` where names do not belong together or a user's team must be said.
    """
    org, team = given.org, given.team
    user = directory.user(given.user) if given.user else None
    if org:
        directory.org(org)
    if user is not None:
        if not team:
            teams = [t for t in user.teams if not org or directory.team(t).org == org]
            if len(teams) > 1:
                raise RequestError(
                    f"The user {user.name!r} is in several teams: {', '.join(teams)}.",
                    code="team_required", param="team", hint="Say for which team the key is.",
                )  # fmt: skip
            team = teams[0] if teams else ""
        elif directory.team(team).name not in user.teams:
            raise RequestError(f"The user {user.name!r} is not in the team {team!r}.", code="not_a_member", param="team")
        if user.org and org not in ("", user.org):
            raise RequestError(
                f"The user {user.name!r} belongs to {user.org!r}, not to {org!r}.", code="not_a_member", param="org"
            )
        org = org or user.org
    if team:
        above = directory.team(team).org
        if org not in ("", above):
            raise RequestError(
                f"The team {team!r} belongs to {above!r}, not to {org!r}." if above else f"The team {team!r} belongs to no organisation.",
                code="not_a_member", param="org",
            )  # fmt: skip
        org = above
    return Owner(org, team, given.user)


def check_user(user: User, directory: Directory) -> None:
    """Raise where a team or the organisation of `user` does not exist, or they do not belong together."""
    if user.org:
        directory.org(user.org)
    for name in user.teams:
        team = directory.team(name)
        if user.org and team.org != user.org:
            raise RequestError(
                f"The team {name!r} is not of {user.org!r}.", code="not_a_member", param="teams",
                hint="A user of one organisation is in teams of it alone; a user without one may be in any.",
            )  # fmt: skip


def check_name(what: str, name: str) -> None:
    """Raise `RequestError` where `name` cannot name an organisation, a team or a user."""
    if not NAME.match(name):
        raise RequestError(
            f"{name[:100]!r} cannot name {'an' if what == 'org' else 'a'} {what}.", code="invalid_name", param="name",
            hint="A name has 1 to 100 letters, digits and . _ @ + -, and begins with a letter or digit.",
        )  # fmt: skip


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise `RequestError` where they are no labels (`kit.labels`)."""
    try:
        labels.check(tags)
    except ValueError as e:
        raise RequestError(f"Tags: {e}.", code="invalid_tags", param="tags") from None


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise `RequestError` where there is too much of it, or a secret in it."""
    if len(metadata) > MOST_METADATA:
        raise RequestError(f"Metadata has at most {MOST_METADATA} entries.", code="invalid_metadata", param="metadata")
    for name, value in metadata.items():
        if not 0 < len(name) <= 64 or len(value) > LONGEST_METADATA:
            what = f"Metadata: {name[:64]!r} must have 1 to 64 characters, and its value at most {LONGEST_METADATA}."
            raise RequestError(what, code="invalid_metadata", param="metadata")
        check_plain("metadata", name, value)


def check_plain(param: str, *texts: str) -> None:
    """Raise `RequestError` where a text holds a key, or what a masked key looks like: neither may be stored as if it were
    words (a masked key, read from a listing and saved back, has destroyed configurations elsewhere: bifrost#4353).
    """
    for text in texts:
        if _MASK.search(text):
            raise RequestError(
                f"{param!r} holds a masked key.", code="masked_value", param=param, hint="Leave out what you do not change."
            )
        if _SECRET.search(text):
            raise RequestError(
                f"{param!r} holds a secret.", code="secret_value", param=param, hint="Keys are kept as hashes only."
            )


def check_endpoints(paths: tuple[str, ...]) -> None:
    """Raise `RequestError` where one is no path under `/v1`, with or without a star at its end."""
    if len(paths) > MOST_ENDPOINTS:
        raise RequestError(f"A key has at most {MOST_ENDPOINTS} endpoints.", code="invalid_endpoint", param="endpoints")
    for path in paths:
        if not _PATH.match(path) or len(path) > 200:
            raise RequestError(
                f"{path[:200]!r} is no endpoint.", code="invalid_endpoint", param="endpoints",
                hint="Write a request path such as /v1/chat/completions, or /v1/files* for all that begin so.",
            )  # fmt: skip
