"""The process of a refresh: `python -m noria.app.refresh_job FOLDER`. `job.json` says which turn of which service.

It reads the turn, does what is not done yet (`journeys.model.turn`), and tells each step before it goes on. It may be killed at any
moment: the keeper starts another one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from noria.app.refresh_client import Client
from noria.app.refresh_work import Steps
from noria.contracts.error import Conflict, NoriaError
from noria.contracts.refresh import RefreshJob, Step, Told
from noria.journeys.model import Asks, Failed, Table, turn
from noria.kit.priority import yield_to_others


async def run(folder: Path) -> str:
    """Take the turn of a folder up; what came of it, in a sentence. Raises `Conflict` where another process has it now."""
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=RefreshJob)
    client = Client(Path(job.home), job.id, job.attempt)
    refresh = await client.read()

    async def keep(step: Step) -> None:
        await client.tell(Told(job.attempt, step))

    table = Table(refresh, keep, time.time_ns)
    try:
        ending = await turn(refresh.plan, Steps(client, refresh, Path(job.home), table), table)
    except Asks as e:
        await client.tell(Told(job.attempt, e.step))
        return e.text
    except Failed as e:
        await client.tell(Told(job.attempt, e.step, failed=e.text))
        return e.text
    await client.tell(Told(job.attempt, ending=ending))
    return ending.says


def main(argv: list[str]) -> int:
    """0 where the turn ended, or waits for a person; 1 with a sentence on stderr; 2 for a wrong call."""
    if len(argv) != 1:
        sys.stderr.write("Usage: python -m noria.app.refresh_job FOLDER\n")
        return 2
    yield_to_others()
    try:
        said = asyncio.run(run(Path(argv[0])))
    except Conflict as e:
        sys.stderr.write(f"Another process has this turn now: {e.text}\n")
        return 1
    except (NoriaError, OSError, msgspec.MsgspecError) as e:
        sys.stderr.write(f"{e.text if isinstance(e, NoriaError) else e}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
