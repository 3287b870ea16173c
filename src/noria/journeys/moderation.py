"""Follow a request to `/v1/moderations`: no model is asked, our own checks judge the texts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Protocol

from msgspec.structs import replace

from noria.contracts.error import NoriaError
from noria.contracts.exchange import Exchange
from noria.contracts.stage import Check, Outlet, Sample
from noria.contracts.trace import ExchangeRow
from noria.contracts.verdict import Action, Ruling, Verdict
from noria.dialects.openai_error import error_answer
from noria.dialects.openai_moderation import Found, write_moderation
from noria.gateway.limits import Claim, Limits
from noria.observe.account import Account

LONG = 4_000
"""Characters that are judged without letting others have a turn."""


class ModerationHouse(Protocol):
    """As `journeys.prompt.House`, with checks by name."""

    @property
    def limits(self) -> Limits:
        """Rates and budgets."""
        ...

    def moderators(self, x: Exchange, /) -> tuple[Exchange, Sequence[Check]]:
        """`x` admitted, and the checks of the app or policy that it names, else every check that has a category."""
        ...

    def open(self, x: Exchange, /) -> Account:
        """See `journeys.prompt.House`."""
        ...

    def close(self, x: Exchange, account: Account, claim: Claim | None = None, /) -> ExchangeRow:
        """See `journeys.prompt.House`."""
        ...


async def moderate(x: Exchange, house: ModerationHouse, out: Outlet, texts: Sequence[str]) -> None:
    """Judge `texts` and write the answer. Recorded are the rulings (spans and labels) and the answer, never a text."""
    account = house.open(x)
    claim, body = None, b""
    try:
        x, checks = house.moderators(x)
        claim = await house.limits.enter(x, account.headers)
        results = [await _judged(text, i, checks, account) for i, text in enumerate(texts)]
        body = account.answer = write_moderation(x.id.replace("-", ""), x.model or "noria", results)
        account.status = 200
    except NoriaError as e:
        account.error = e
        account.status = error_answer(e)[0]
    except BaseException as e:
        account.error = e
        account.status = 499
        raise
    finally:
        house.close(replace(x, authorization=""), account, claim)
    headers: list[tuple[str, str]] = []
    status = 200
    if isinstance(account.error, NoriaError):
        status, headers, body = error_answer(account.error)
    named = [("content-type", "application/json"), ("x-request-id", x.id), ("x-noria-trace", x.trace)]
    out.head(status, named + headers + account.headers, stream=False)
    out.data(body)
    out.end()


async def _judged(text: str, number: int, checks: Sequence[Check], account: Account) -> Found:
    scores: dict[str, float] = {}
    flagged: set[str] = set()
    for check in checks:
        sample = Sample(input=text) if "input" in check.needs else Sample(output=text)
        began = perf_counter_ns()
        verdict = check.judge(sample) if len(text) <= LONG else await asyncio.to_thread(check.judge, sample)
        took = perf_counter_ns() - began
        action: Action = "allow" if verdict.passed else "flag"
        account.rulings.append(Ruling(verdict, action, f"input.{number}", took))
        _note(check.category or check.id, verdict, scores, flagged)
    return Found(scores, frozenset(flagged))


def _note(category: str, verdict: Verdict, scores: dict[str, float], flagged: set[str]) -> None:
    """A check is a category; each kind of thing that it found is one below it (`pii/email`), as at OpenAI."""
    scores[category] = max(verdict.score, scores.get(category, 0.0))
    if not verdict.passed:
        flagged.add(category)
    for finding in verdict.findings:
        name = f"{category}/{finding.label}"
        scores[name] = max(finding.score, scores.get(name, 0.0))
        flagged.add(name)
