"""The demo from its beginning to its exit code: what it needs, the service, the story, the report."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from noria.contracts.error import NoriaError
from noria.demo import report
from noria.demo.customers import acts, intents, messages
from noria.demo.narrate import Narrator
from noria.demo.place import (
    EVENTS,
    FIRST_FOLDER,
    Place,
    configuration,
    first_classifier,
    installed_base,
    lend,
    trainer,
    write_history,
)
from noria.demo.place import HISTORY as HISTORY_FILE
from noria.demo.service import Service
from noria.demo.size import FAST, FULL
from noria.demo.story import Cast, Story
from noria.kit.atomic import write_whole

Speaker = Callable[[Path], Narrator]
"""Makes the narrator that keeps its events in a file."""


class Wish(NamedTuple):
    """What was asked for."""

    root: Path
    fast: bool
    python: str
    """The interpreter that trains; empty = this one."""
    models: Path
    """The home whose installed base model is lent."""
    stay: bool
    """Whether the service stays at the end, until Ctrl-C."""


def play(wish: Wish, speaker: Speaker) -> int:
    """The whole demo; 0 where every verdict was reached, 1 where one was not. Raises `NoriaError` before anything has begun, where
    something is missing that it needs.
    """
    size = FAST if wish.fast else FULL
    python = "" if wish.fast else trainer(wish.python)
    known, said = intents(), messages()
    model = None if wish.fast else installed_base(wish.models)
    place = Place(wish.root)
    removed = place.clear()
    if model is not None:
        lend(model, place.home)
    cast = Cast(place, size, known, acts(said, known, size.deal))
    of = write_history(place.root / HISTORY_FILE, cast.acts.history, size.splits)
    lessons = [m for m in cast.acts.history if of[m.id] == "train"]
    first = first_classifier(place.root / FIRST_FOLDER, lessons) if wish.fast else None
    write_whole(place.config, msgspec.json.format(msgspec.json.encode(configuration(size, known, python, first)), indent=2))
    narrator = speaker(place.root / EVENTS)
    if removed:
        narrator.say(removed)
    narrator.say(
        f"About {size.budget_s / 60:.1f} minutes on two cores that do nothing else: "
        + ", ".join(f"{a.name} {a.budget_s:.0f} s" for a in size.acts if a.budget_s)
    )
    return asyncio.run(_played(cast, narrator, wish))


async def _played(cast: Cast, narrator: Narrator, wish: Wish) -> int:
    story, reason = Story(cast, narrator), ""
    with _interruptible():
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    await story.tell(stack)
                except NoriaError as e:  # a verdict that was not reached, or a service that broke
                    reason = e.text
                _close(cast, narrator, reason)
                if wish.stay and story.service is not None:
                    await _stays(story.service, narrator)
        except asyncio.CancelledError:
            if not narrator.of("end"):
                _close(cast, narrator, "It was interrupted.")
                raise KeyboardInterrupt from None
    return 1 if reason else 0


def _close(cast: Cast, narrator: Narrator, reason: str) -> None:
    """The report, and the last event."""
    place, took = cast.place, narrator.seconds
    write_whole(place.report, report.page(narrator, cast, reason).encode(), mode=0o644)
    if reason:
        narrator.say(f"Not every verdict was reached. {reason}")
    narrator.say(f"{took / 60:.1f} minutes of {cast.size.budget_s / 60:.1f}. Report: {place.report}")
    narrator.say(f"To look at it again: NORIA_HOME={place.home} noria up --config {place.config}")
    reached = {v["name"]: v["reached"] for v in narrator.of("verdict")}
    narrator.end(
        passed=not reason,
        reason=reason,
        seconds=round(took, 1),
        verdicts=reached,
        report=str(place.report),
        home=str(place.home),
    )


async def _stays(service: Service, narrator: Narrator) -> None:
    """Serve until Ctrl-C."""
    narrator.say(f"Console (this link works once): {await service.login()}")
    narrator.say(f"The service goes on at {service.url}/v1 until Ctrl-C; then nothing is left running.")
    await asyncio.to_thread(service.process.wait)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM cancel the story, so that the service is stopped in order."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
