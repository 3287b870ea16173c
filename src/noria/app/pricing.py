"""Prices of endpoints, resolved when a configuration is applied, never by a request: noria.yaml, else the price file, else
the table that comes along (`gateway.prices`). Where prices change with time, a snapshot has those of when it was made, to be
shown and compared; an exchange costs what the price of its own beginning says (`Endpoint.price_at`).
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace
from pydantic import ValidationError

from noria.contracts.error import ConfigError
from noria.contracts.price import Price
from noria.contracts.release import App, Endpoint
from noria.gateway.prices import Found, source
from noria.kit.atomic import write_whole
from noria.settings.money import price_table

log = logging.getLogger("noria.money")

OWN = frozenset({"local", "scripted"})
"""Providers whose models cost what noria.yaml says, or nothing that is known."""
WITHIN = 60.0
CACHE = "prices.json"
FORMAT = 2
"""Of what is kept there: raised where the table is read in another way."""
Ask = tuple[str, str, str]


class _Cached(msgspec.Struct):
    source: str
    found: dict[str, Found]
    format: int = 1


def priced(route: Mapping[str, Endpoint], home: Path, price_file: str | None) -> dict[str, Endpoint]:
    """The endpoints with their prices as of today, and all that are known by date."""
    own = read_price_file(price_file) if price_file else {}
    asks = {name: ask(e) for name, e in route.items() if e.price is None and e.provider not in OWN and not _own(e, own)}
    table = look_up(set(asks.values()), home)
    made = {}
    for name, e in route.items():
        known: tuple[Price, ...] = () if e.price is not None else _own(e, own)
        if not known and name in asks:
            known = table.get(asks[name], Found()).prices
        made[name] = today(replace(e, prices=known)) if known else e
    return made


def ask(e: Endpoint) -> Ask:
    """What the table is asked for an endpoint: vendor, model, URL."""
    return (e.vendor or e.provider, e.model, e.url)


def today(e: Endpoint, at_ns: int | None = None) -> Endpoint:
    """The endpoint with the price of a moment (Unix ns; of now)."""
    if not e.prices:
        return e
    price = e.price_at(time.time_ns() if at_ns is None else at_ns)
    return e if price == e.price else replace(e, price=price)


def of_today(app: App, at_ns: int | None = None) -> App:
    """The app with the prices of a moment: no part of a release's id, so that a dearer model is no other release."""
    changed = {}
    for name, release in app.releases.items():
        route = tuple(today(e, at_ns) for e in release.route)
        if route != release.route:
            changed[name] = replace(release, route=route)
    return replace(app, releases={**app.releases, **changed}) if changed else app


def read_price_file(path: str) -> dict[str, tuple[Price, ...]]:
    """Prices by `vendor/model`. Raises `ConfigError` that names the file and what is wrong in it."""
    try:
        value = msgspec.json.decode(Path(path).read_bytes())
        return price_table(value, Path(path).name)
    except OSError as e:
        raise ConfigError(f"The price file {path!r} cannot be read: {e.strerror}.", where="price_file") from None
    except msgspec.DecodeError as e:
        raise ConfigError(f"The price file {path!r} is not JSON: {e}.", where="price_file") from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(p) for p in first["loc"])
        raise ConfigError(f"The price file {path!r}: {at}: {first['msg']}.", where="price_file") from None


def look_up(asks: Iterable[Ask], home: Path) -> dict[Ask, Found]:
    """What the table has, by question. Answers are kept in `home` for as long as the table's version stays.

    A table that cannot be read leaves prices unknown, which is not free: budgets then refuse, and a notice says so.
    """
    wanted = sorted(set(asks))
    if not wanted:
        return {}
    kept = _kept(home)
    missing = [a for a in wanted if _key(a) not in kept.found]
    if missing:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "noria.gateway.prices"],
                input=msgspec.json.encode(missing), capture_output=True, timeout=WITHIN, check=True,
            )  # fmt: skip
            found = msgspec.json.decode(done.stdout, type=list[Found])
        except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as e:
            log.error("the price table cannot be read, prices stay unknown: %s", e)
            return {a: kept.found[_key(a)] for a in wanted if _key(a) in kept.found}
        kept.found |= {_key(a): f for a, f in zip(missing, found, strict=True)}
        _keep(home, kept)
    return {a: kept.found[_key(a)] for a in wanted}


def _key(asked: Ask) -> str:
    return " ".join(asked)


def _own(e: Endpoint, table: Mapping[str, tuple[Price, ...]]) -> tuple[Price, ...]:
    return table.get(f"{e.vendor or e.provider}/{e.model}") or table.get(e.model) or ()


def _kept(home: Path) -> _Cached:
    try:
        kept = msgspec.json.decode((home / "run" / CACHE).read_bytes(), type=_Cached)
    except (OSError, msgspec.MsgspecError):
        kept = _Cached("", {})
    return kept if (kept.source, kept.format) == (source(), FORMAT) else _Cached(source(), {}, FORMAT)


def _keep(home: Path, kept: _Cached) -> None:
    try:
        (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(home / "run" / CACHE, msgspec.json.encode(kept))
    except OSError as e:
        log.warning("prices are not kept for the next start: %s", e)
