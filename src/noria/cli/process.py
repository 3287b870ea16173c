"""The processes that `noria up` starts; each is its own command so that `ps` shows what it is."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from noria import __version__
from noria.cli.serve import Word
from noria.kit.redact import install
from noria.settings import home, log_level


@click.group(name="process", hidden=True)
def command() -> None:
    """One process of the service."""
    install(log_level())


def _run(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def _told() -> Callable[[], Awaitable[Word]]:
    """Signals as words: SIGTERM and SIGINT say stop, SIGHUP says that a successor serves."""
    words: asyncio.Queue[Word] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, words.put_nowait, "stop")
    loop.add_signal_handler(signal.SIGHUP, words.put_nowait, "replaced")
    return words.get


@command.command()
@click.option("--slot", type=int, required=True)
@click.option("--side", default="")
@click.option("--fd", type=int, required=True)
@click.option("--workers", type=int, default=1)
@click.option("--host", default="127.0.0.1")
@click.option("--notice", type=float, default=0.0)
@click.option("--stop", type=float, default=25.0)
@click.option("--drain", type=float, default=600.0)
def worker(slot: int, side: str, fd: int, **more: Any) -> None:
    """A gateway worker on an inherited socket."""
    from noria.cli.serve import Post, serve_worker

    _run(serve_worker(home(), Post(slot, side, **more), socket.socket(fileno=fd), _told))


@command.command()
@click.option("--config", type=click.Path(path_type=Path))
def preflight(config: Path | None) -> None:
    """Whether this version can take over a running service: its version on the last line, or exit 2 and why not."""
    from noria.app.inherit import left
    from noria.app.stores import define, load_settings

    left()
    define(load_settings(config))
    click.echo(__version__)


@command.command()
@click.option("--config", type=click.Path(path_type=Path))
def keeper(config: Path | None) -> None:
    """The keeper of the embedded stores."""
    from noria.cli.serve import serve_keeper

    _run(serve_keeper(home(), config, _told))
