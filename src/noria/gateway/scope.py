"""What an exchange is counted under: the scopes of limits and budgets."""

from __future__ import annotations

from noria.contracts.evaluation import EVALUATOR
from noria.contracts.exchange import Exchange

KINDS = ("tenant", "org", "team", "user", "key", "app", "tag")
"""The kinds of scope; all but `tenant` take a name after a colon, `tag` takes `name=value`."""


def scopes(x: Exchange) -> tuple[str, ...]:
    """Every scope that `x` falls under, widest first. `x` has been admitted. An evaluation does not use up what the app's callers have.

    >>> from noria.contracts.release import Key
    >>> key = Key("key_1", "", org="acme", team="search", tags={"env": "prod"})
    >>> x = Exchange("i", "t", "s", "local", "chat", "support", False, {}, 0, key=key, tags=key.tags)
    >>> scopes(x)
    ('tenant', 'org:acme', 'team:search', 'key:key_1', 'app:support', 'tag:env=prod')
    """
    found = ["tenant"]
    key = x.key
    if key is not None:
        if key.org:
            found.append("org:" + key.org)
        if key.team:
            found.append("team:" + key.team)
        if key.user:
            found.append("user:" + key.user)
        found.append("key:" + key.id)
    if x.model and (key is None or key.id != EVALUATOR):
        found.append("app:" + x.model)
    found += [f"tag:{name}={value}" for name, value in x.tags.items()]
    return tuple(found)
