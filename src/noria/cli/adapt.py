"""`noria adapt`: train a model on a dataset, watch it, prove what was exported."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from noria.cli.service import Refused, call, emit, keeper

OPEN = ("waiting", "running")
LOOK = 0.5
"""Seconds between two looks at a job."""
OUTPUTS = ("adapter_gguf", "merged_f16", "merged_q8_0", "merged_q4_k_m")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
Command = Callable[..., Any]
DETACH = click.option("--detach", is_flag=True, help="Return at once; see `noria adapt show`.")


def job_options(*, epochs: float, batch: int) -> Callable[[Command], Command]:
    """The options of every kind of training, with the defaults in which they differ."""
    options = (
        click.option(
            "--dataset", required=True, help="A dataset's name (its latest version), name@version, or a version's id."
        ),
        click.option("--split", default="train", show_default=True, help="Split to train on."),
        click.option("--held-out", default="validation", show_default=True, help="Split to compare on."),
        click.option("--epochs", default=epochs, show_default=True),
        click.option("--steps", default=0, help="At most so many optimiser steps; 0 = as --epochs says."),
        click.option("--batch", default=batch, show_default=True),
        click.option("--rate", default=5e-4, show_default=True, help="Learning rate."),
        click.option("--checkpoint-every", default=20, show_default=True, help="Steps."),
        click.option("--seed", default=0, show_default=True),
        DETACH,
        JSON,
    )

    def put(on: Command) -> Command:
        for option in reversed(options):
            on = option(on)
        return on

    return put


@click.group(name="adapt")
def command() -> None:
    """Training: jobs that make a model from a dataset and a base."""


@command.command()
@job_options(epochs=1.0, batch=8)
@click.option("--base", default="smollm2-135m", show_default=True, help="Installed model.")
@click.option("--prompt", default="", help="The system prompt that it will be served with.")
@click.option("--prompt-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same, from a file.")
@click.option("--max-length", default=256, show_default=True, help="Tokens of a row; longer ones are left out by name.")
@click.option("--rank", default=16, show_default=True, help="Of the LoRA; its alpha is twice that.")
@click.option("--memory", default=0.0, help="GB that it may be predicted to take; 0 = what is free.")
@click.option("--output", "outputs", type=click.Choice(OUTPUTS), multiple=True, default=("adapter_gguf",), show_default=True)
def sft(**given: Any) -> None:
    """Supervised fine-tuning by LoRA (needs noria[train])."""
    prompt_file = given["prompt_file"]
    body = _asked(given, "sft") | {
        "base": given["base"],
        "system": prompt_file.read_text(encoding="utf-8") if prompt_file else given["prompt"],
        "lora": {"r": given["rank"], "alpha": 2 * given["rank"]},
        "memory": int(given["memory"] * 1e9),
        "outputs": list(given["outputs"]),
    }
    body["schedule"] |= {"max_length": given["max_length"]}
    _begin(body, detach=given["detach"], as_json=given["as_json"])


@command.command()
@job_options(epochs=10.0, batch=16)
def tiny(**given: Any) -> None:
    """A classifier on n-grams: trains in seconds, needs no library, and is a baseline to beat."""
    _begin(_asked(given, "tiny"), detach=given["detach"], as_json=given["as_json"])


@command.command(name="list")
@JSON
def several(as_json: bool) -> None:
    """Every training job, newest first."""
    found = call("GET", "/api/jobs/training")
    if as_json:
        emit(found)
        return
    for shown in found:
        click.echo(_line(shown))
    if not found:
        click.echo("Nothing was trained yet.")


@command.command()
@click.argument("id")
@click.option("--follow", is_flag=True, help="Until it ends.")
@JSON
def show(id: str, *, follow: bool, as_json: bool) -> None:
    """One job, and what came of it."""
    if follow:
        _follow(id, as_json=as_json)
    else:
        _print(call("GET", f"/api/jobs/training/{id}"), as_json=as_json)


@command.command()
@click.argument("id")
@JSON
def stop(id: str, as_json: bool) -> None:
    """End a job; what it has is kept."""
    _print(call("POST", f"/api/jobs/training/{id}/stop"), as_json=as_json)


@command.command()
@click.argument("id")
@DETACH
@JSON
def resume(id: str, *, detach: bool, as_json: bool) -> None:
    """Let a job that was killed or stopped go on from its last checkpoint."""
    shown = call("POST", f"/api/jobs/training/{id}/resume")
    _print(shown, as_json=as_json) if detach else _follow(id, as_json=as_json)


@command.command()
@click.argument("id")
@click.option("--file", "name", help="One of the files that the job made; by default each GGUF file.")
@JSON
def check(id: str, *, name: str | None, as_json: bool) -> None:
    """Whether the exported files answer as the trained model does. Exit 1 where one does not."""
    from noria.adapt import equivalence
    from noria.contracts.error import NoriaError

    shown = call("GET", f"/api/jobs/training/{id}")
    if shown["result"] is None:
        raise Refused(f"The job {id} is {shown['state']}: it made nothing to check.", code="not_ready")
    folder = Path(shown["folder"])
    made = [m["name"] for m in shown["result"]["made"] if m["name"].endswith(".gguf") and name in (None, m["name"])]
    if not made:
        raise Refused(f"The job {id} made no {name or 'GGUF file'}.", code="not_found")
    verdicts, good = [], True
    for file in made:
        base = Path(shown["job"]["weights"])
        served = equivalence.Served(base, folder / file) if file == "adapter.gguf" else equivalence.Served(folder / file)
        try:
            verdicts.append(_told(equivalence.check(folder, served)))
        except NoriaError as e:
            good = False
            verdicts.append({"file": file, "equivalent": False, "code": e.code, "message": e.text})
    if as_json:
        emit(verdicts)
    else:
        for verdict in verdicts:
            click.echo(_verdict(verdict))
    if not good:
        raise click.exceptions.Exit(1)


def _asked(given: dict[str, Any], method: str) -> dict[str, Any]:
    schedule = {
        "epochs": given["epochs"], "steps": given["steps"], "batch": given["batch"], "learning_rate": given["rate"],
        "checkpoint_every": given["checkpoint_every"],
    }  # fmt: skip
    return {
        "method": method, "dataset": given["dataset"], "train": given["split"], "validation": given["held_out"],
        "seed": given["seed"], "schedule": schedule,
    }  # fmt: skip


def _begin(body: dict[str, Any], *, detach: bool, as_json: bool) -> None:
    shown = call("POST", "/api/jobs/training", body)
    _print(shown, as_json=as_json) if detach else _follow(shown["id"], as_json=as_json)


def _follow(id: str, *, as_json: bool) -> None:
    """Watch to the end: a live line on a terminal, silence with --json. Exit 1 where it did not succeed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, quiet=as_json)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TextColumn("{task.fields[says]}"),
    )
    place = 0
    with keeper(), Progress(*columns, console=console) as live:
        task = live.add_task("starting", total=None, says="")
        while True:
            shown = call("GET", f"/api/jobs/training/{id}?after={place}")
            place = shown["next"]
            for line in shown["progress"]:
                live.update(
                    task,
                    description=line["phase"],
                    completed=line.get("step", 0),
                    total=line.get("steps") or None,
                    says=_says(line),
                )
            if shown["state"] not in OPEN:
                break
            time.sleep(LOOK)
    _print(call("GET", f"/api/jobs/training/{id}"), as_json=as_json)
    if shown["state"] != "done":
        raise click.exceptions.Exit(1)


def _says(line: dict[str, Any]) -> str:
    if line.get("loss") is None:
        return str(line.get("note", ""))
    return f"loss {line['loss']:.3f}  {line['seconds_per_step']:.2f} s/step  {_span(line['eta_seconds'])} left"


def _span(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.0f} s"


def _line(shown: dict[str, Any]) -> str:
    now = shown["now"] or {}
    where = f"{now.get('phase', '')} {now.get('step', 0)}/{now.get('steps', 0)}" if shown["state"] in OPEN else ""
    return f"{shown['id']}  {shown['state']:<8} {shown['job']['method']:<5} {shown['job']['dataset'][:15]}… {where}".rstrip()


def _print(shown: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit({k: v for k, v in shown.items() if k not in ("progress", "next")})
        return
    click.echo(_line(shown))
    if shown["reason"]:
        click.echo(f"  {shown['reason']}")
    if (result := shown["result"]) is None:
        return
    click.echo(
        f"  {result['rows']} rows, {result['steps']} steps in {_span(result['seconds'])}, loss {result['loss'][0]:.3f} → "
        f"{result['loss'][-1]:.3f}, at most {result['peak_bytes'] / 1e9:.1f} GB"
    )
    for made in result["made"]:
        click.echo(f"  {made['name']:<40} {made['bytes']:>12}  {made['sha256'][:16]}…")
    for row, why in result["skipped"].items():
        click.echo(f"  not trained on: {row}: {why}")
    click.echo(f"  in {shown['folder']}")


def _told(verdict: Any) -> dict[str, Any]:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(verdict)
    return told


def _verdict(verdict: dict[str, Any]) -> str:
    if not verdict["equivalent"]:
        return f"✗ {verdict['file']}: {verdict['message']}"
    return (
        f"✓ {verdict['file']}: {verdict['agreement']:.1%} of {verdict['rows']} answers agree, accuracy "
        f"{verdict['served_accuracy']:.1%} (trained model {verdict['trained_accuracy']:.1%})"
    )
