"""Who writes to the help desk: the labelled messages of `helpdesk/`, dealt out to the acts of the demo.

The customers are the only thing in the demo that is played. What a customer thinks of an answer, and what the right one had been,
comes from the label of the message; the screen says so.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from noria.contracts.error import ConfigError

HERE = Path(__file__).parent / "helpdesk"
INTENTS, UTTERANCES = "intents.json", "utterances_{lang}.jsonl"


class Message(msgspec.Struct, frozen=True):
    """One message of one customer, and what it is about."""

    id: str
    text: str
    intent: str
    lang: str
    group: str
    """The customer."""


class Intent(msgspec.Struct, frozen=True):
    """One thing that customers ask about; `since` v1, or v2 = they begin to ask later."""

    id: str
    since: str
    title: dict[str, str]
    definition: dict[str, str]


class Deal(NamedTuple):
    """How many messages of each intent an act gets at most."""

    history: int
    """Labelled in the help desk's past; old intents alone."""
    before: int
    """Asked of v1 while all is as it was; old intents alone."""
    after_old: int
    """Asked of v1 once customers ask about new things, too."""
    after_new: int


class Acts(NamedTuple):
    """Messages by act, each act in an order of its own; no customer is in two of them."""

    history: tuple[Message, ...]
    before: tuple[Message, ...]
    after: tuple[Message, ...]
    rest: tuple[Message, ...]
    """Everything else: whom the canary meets."""


class _Desk(msgspec.Struct, frozen=True):
    intents: tuple[Intent, ...]


def intents(folder: Path = HERE) -> tuple[Intent, ...]:
    """What customers ask about. Raises `ConfigError` for a folder that holds no help desk."""
    try:
        return msgspec.json.decode((folder / INTENTS).read_bytes(), type=_Desk).intents
    except (OSError, msgspec.DecodeError) as e:
        raise ConfigError(f"{folder / INTENTS} cannot be read: {e}") from e


def messages(lang: str = "en", folder: Path = HERE) -> list[Message]:
    """Every message of a language, in the order of the file. Raises `ConfigError` as `intents`."""
    path = folder / UTTERANCES.format(lang=lang)
    try:
        return [msgspec.json.decode(line, type=Message) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, msgspec.DecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e


def acts(said: Sequence[Message], known: Sequence[Intent], deal: Deal, *, seed: int = 0) -> Acts:
    """Deal the messages out. Whole customers at a time, so that nobody is learned from and asked again."""
    rnd = random.Random(seed)  # noqa: S311  an order, no secret
    new = {i.id for i in known if i.since != "v1"}
    found: dict[str, list[Message]] = {name: [] for name in Acts._fields}
    for intent, customers in sorted(_by_intent(said).items()):
        rnd.shuffle(customers)
        wanted = (0, 0, deal.after_new) if intent in new else (deal.history, deal.before, deal.after_old)
        places = iter(zip(Acts._fields, (*wanted, len(said)), strict=True))
        act, room = next(places)
        for customer in customers:
            while room < len(customer) and act != "rest":
                act, room = next(places)
            found[act] += customer
            room -= len(customer)
    for some in found.values():
        rnd.shuffle(some)
    return Acts(**{name: tuple(some) for name, some in found.items()})


def _by_intent(said: Sequence[Message]) -> dict[str, list[list[Message]]]:
    """Customers by what their first message is about, each with all of their messages."""
    customers: dict[str, list[Message]] = defaultdict(list)
    for m in said:
        customers[m.group].append(m)
    found: dict[str, list[list[Message]]] = defaultdict(list)
    for one in customers.values():
        found[one[0].intent].append(one)
    return found
