"""`noria jobs`: work that was given up."""

from __future__ import annotations

import click

from noria.cli.service import call, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")


@click.group(name="jobs")
def command() -> None:
    """Jobs of the queue that failed for good."""


@command.command()
@JSON
def dead(as_json: bool) -> None:
    """Every job that was given up, oldest first."""
    found = call("GET", "/api/jobs/dead")
    if as_json:
        emit(found)
        return
    for job in found:
        click.echo(f"{job['queue']}  {job['id']}  {job['attempts']} attempts, put {job['put']}")
    if not found:
        click.echo("No job was given up.")


@command.command()
@click.argument("queue")
@click.argument("id")
@JSON
def revive(queue: str, id: str, as_json: bool) -> None:
    """Have the job ID of QUEUE tried again, at once."""
    done = call("POST", "/api/jobs/revive", {"queue": queue, "id": id})
    emit(done) if as_json else click.echo(f"{id} is tried again.")
