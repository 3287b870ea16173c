"""`noria replay`: send a file of prompts through the running service."""

from __future__ import annotations

import asyncio
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click
import msgspec

from noria.cli.service import bearer, emit, gateway_url
from noria.contracts.error import ConfigError
from noria.kit.ids import digest


@click.command(name="replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--app", required=True, help="The app to ask.")
@click.option("--concurrency", type=click.IntRange(min=1), default=4, show_default=True, help="At most so many at a time.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Prompts a second (Poisson). Default: as fast as answers come."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N prompts.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Output limit of each answer.")
@click.option("--params", default="{}", help="More request parameters, as JSON.")
@click.option("--no-stream", is_flag=True, help="Whole answers instead of streams.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Result file. Default: FILE's name + .replay.jsonl, here."
)
@click.option("--key", help="API key. Default: NORIA_API_KEY, else this home's admin session.")
@click.option("--url", help="Default: the service that runs here.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def command(file: Path, **options: Any) -> None:
    """Send the prompts of FILE (JSONL, .gz too) through an app. Started again, it goes on where it stopped."""
    from noria.app.replay import ResultFile, Target, run, summary
    from noria.data.collect import read_prompts

    skipped: list[tuple[int, str]] = []
    prompts = list(islice(read_prompts(file, skip=lambda line, why: skipped.append((line, why))), options["limit"]))
    if not prompts:
        raise ConfigError(f"{file} holds no prompt.", hint=f"Line {skipped[0][0]}: {skipped[0][1]}" if skipped else None)
    target = Target(
        url=options["url"] or gateway_url(),
        key=bearer(options["key"]),
        app=options["app"],
        stream=not options["no_stream"],
        params=_params(options["params"], options["max_tokens"]),
        concurrency=options["concurrency"],
        rate=options["rate"],
    )
    out = options["out"] or Path(file.name.removesuffix(".gz").removesuffix(".jsonl") + ".replay.jsonl")
    results = ResultFile(out, source=digest(file.read_bytes()), app=target.app)
    todo = [p for p in prompts if p.line not in results.done]
    fresh: list[Any] = []
    with _progress(len(prompts), len(prompts) - len(todo)) as step:

        def tell(result: Any) -> None:
            results.add(result)
            fresh.append(result)
            step(result)

        seconds = asyncio.run(run(todo, target, tell))
    results.close()
    report = {
        **summary(fresh, seconds),
        "done_before": len(prompts) - len(todo),
        "app": target.app,
        "file": file.name,
        "rows_without_prompt": skipped,
        "out": str(out),
    }
    emit(report) if options["as_json"] else _print(report)
    if report["failed"]:
        sys.exit(1)


def _params(text: str, max_tokens: int | None) -> dict[str, Any]:
    try:
        params = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as e:
        raise click.BadParameter(f"not a JSON object: {e}", param_hint="--params") from None
    return params | ({"max_tokens": max_tokens} if max_tokens else {})


class _progress:  # noqa: N801  a context manager, used like a function
    """A progress bar on stderr: done, failed, rate, time left."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._bar.add_task("replay", total=total, completed=done, failed=0)
        self._failed = 0

    def __enter__(self) -> Any:
        self._bar.start()
        return self._step

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def _step(self, result: Any) -> None:
        self._failed += bool(result.error)
        self._bar.update(self._task, advance=1, failed=self._failed)


def _print(report: dict[str, Any]) -> None:
    before = f", {report['done_before']} done before" if report["done_before"] else ""
    click.echo(
        f"{report['ok']} of {report['prompts']} prompts answered by {report['app']} in {report['seconds']:.1f} s{before}"
    )
    click.echo(
        f"{report['prompts_per_s']:.2f} prompts/s   {report['output_tokens_per_s']:.1f} output tokens/s   "
        f"{report['input_tokens']} tokens in, {report['output_tokens']} out"
    )
    for title, key in (("first token ms", "first_token_ms"), ("whole answer ms", "duration_ms")):
        if report[key]:
            click.echo(f"{title:<16}" + "  ".join(f"{name} {value:,.1f}" for name, value in report[key].items()))
    for reason, n in report["failures"].items():
        click.echo(f"failed {n} × {reason}")
    for line, why in report["rows_without_prompt"][:3]:
        click.echo(f"passed over line {line}: {why}")
    if len(report["rows_without_prompt"]) > 3:
        click.echo(f"passed over {len(report['rows_without_prompt']) - 3} more rows without a prompt")
    click.echo(f"results: {report['out']}")
