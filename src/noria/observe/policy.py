"""Configured policies that do nothing: a misspelt scope or a forgotten app must not pass for protection (museum 24).

Every policy counts how often it was evaluated and how often it acted (`noria_policy_total`). One that was never
evaluated although the traffic that it should judge has passed is reported by `/api/status` and `noria doctor`.
"""

from __future__ import annotations

from collections.abc import Mapping

from noria.contracts.release import Budget, Limit, Snapshot

ENOUGH = 20
"""Answers after which a policy that has not been evaluated once is worth a word."""


def configured(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """Every policy of a configuration → the apps whose answers it should see; empty = those of any app.

    What belongs to a single key or user is left out: whether they call is up to them.
    """
    found: dict[str, tuple[str, ...]] = {}
    for app in snapshot.apps.values():
        for release in app.releases.values():
            if app.weights.get(release.name, 0.0) > 0:
                found |= {f"guard:{app.name}/{rule.check}": (app.name,) for rule in release.guard}
    policies: list[tuple[str, Limit | Budget]] = [
        *(("limit", p) for p in snapshot.limits),
        *(("budget", p) for p in snapshot.budgets),
    ]
    for kind, policy in policies:
        scope, _, name = policy.scope.partition(":")
        hard = not isinstance(policy, Budget) or policy.hard  # soft ones are watched by the keeper, not per exchange
        if hard and scope not in ("key", "user"):
            found[f"{kind}:{policy.id}"] = (name,) if scope == "app" else ()
    return found


def silent(snapshot: Snapshot, counts: Mapping[str, tuple[int, int]], answers: Mapping[str, int]) -> list[str]:
    """In words, each policy that was never evaluated though enough answers that it should have seen were given.

    `counts` are (evaluated, acted) by policy, `answers` those given by app, both since the start of the service.
    """
    told = []
    for policy, apps in sorted(configured(snapshot).items()):
        passed = sum(answers.get(a, 0) for a in apps) if apps else sum(answers.values())
        if counts.get(policy, (0, 0))[0] == 0 and (passed >= ENOUGH or (apps and not all(a in snapshot.apps for a in apps))):
            told.append(f"The policy {policy} was never evaluated, though {passed} answers passed that it might have judged.")
    return told
