"""`noria chat`: talk to an app from the terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from noria.cli.service import bearer, gateway_url


@click.command(name="chat")
@click.argument("app", required=False)
@click.option("-m", "--message", help="Ask once and leave.")
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--temperature", type=click.FloatRange(min=0, max=2))
@click.option("--key", help="API key. Default: NORIA_API_KEY, else this home's admin session.")
@click.option("--url", help="Default: the service that runs here.")
def command(
    app: str | None, message: str | None, *, max_tokens: int | None, temperature: float | None, key: str | None, url: str | None
) -> None:
    """Chat with APP (default: the first one). Ctrl-D or an empty line ends it."""
    from noria.app.talk import Talk

    params = {k: v for k, v in (("max_tokens", max_tokens), ("temperature", temperature)) if v is not None}
    talk = Talk(url or gateway_url(), bearer(key), params)
    name = app or asyncio.run(talk.first_app())
    if message is not None:
        _say(talk, name, message)
        return
    click.echo(f"{name}: say something.", err=True)
    while True:
        try:
            text = click.prompt("you", prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            break
        if not text.strip():
            break
        _say(talk, name, text)


def _say(talk: Any, name: str, text: str) -> None:
    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    asyncio.run(talk.say(name, text, show))
    click.echo()
