"""The processes that `noria up` starts; each is its own command so that `ps` shows what it is."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from noria.settings import home, log_level


@click.group(name="process", hidden=True)
def command() -> None:
    """One process of the service."""
    logging.basicConfig(level=log_level().upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _run(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def _until_told() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, told.set)
    await told.wait()


@command.command()
@click.option("--slot", type=int, required=True)
@click.option("--fd", type=int, required=True)
@click.option("--workers", type=int, default=1)
@click.option("--host", default="127.0.0.1")
def worker(slot: int, fd: int, workers: int, host: str) -> None:
    """A gateway worker on an inherited socket."""
    from noria.cli.serve import serve_worker

    _run(serve_worker(home(), slot, socket.socket(fileno=fd), workers=workers, host=host, until=_until_told))


@command.command()
@click.option("--config", type=click.Path(path_type=Path))
def keeper(config: Path | None) -> None:
    """The keeper of the embedded stores."""
    from noria.cli.serve import serve_keeper

    _run(serve_keeper(home(), config, until=_until_told))
