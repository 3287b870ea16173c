"""Fields that several bodies of the management API share: durations, times, money, and who acts."""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)\Z")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


class Strict(BaseModel):
    """Base of bodies: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def seconds(value: object) -> object:
    """Seconds of a number, or of text with a unit.

    >>> seconds("24h"), seconds("1.5d")
    (86400.0, 129600.0)
    """
    if not isinstance(value, str):
        return value
    found = _DURATION.match(value.strip())
    if found is None:
        raise ValueError('a duration is a number of seconds or text such as "24h" (s, m, h, d, w)')
    return float(found[1]) * _UNITS[found[2]]


Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)]
Title = Annotated[str, Field(max_length=200, description="For people.")]
Labels = Annotated[dict[str, str], Field(description="name=value, at most 16, each part at most 64 characters.")]
Metadata = Annotated[dict[str, str], Field(description="For people and their tools: at most 32 entries of 512 characters.")]
Id = Annotated[
    str,
    Field(
        pattern="^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$",
        description="A UUID for what is begun: the same again means what is there, so that a call whose answer was lost may be repeated.",
    ),
]
LONGEST = 100 * 366 * 86_400.0
"""Seconds: no key is made for more than a hundred years."""


def instant_ns(at: dt.datetime) -> int:
    """int64 ns UTC of a time; one without a zone is UTC."""
    aware = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
    return int(aware.timestamp() * 1_000_000) * 1000


def later_ns(seconds: float) -> int:
    """int64 ns UTC, so many seconds from now."""
    return time.time_ns() + int(seconds * 1e9)


def actor(request: Request) -> str:
    """Who acts, for the event: the command line (it speaks to the socket), a console session, or a holder of the admin token."""
    if "x-noria-relayed" not in request.headers:
        return "cli"
    return "admin" if request.headers.get("authorization", "").startswith("Bearer ") else "console"
