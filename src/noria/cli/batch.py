"""`noria batch`: hand in a JSONL file of requests, watch it, take its results."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from noria.cli.service import Refused, bearer, emit, gateway_url

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
LOOK = 1.0
"""Seconds between two looks of `--wait`."""
_KEY = click.option("--key", help="The API key to ask with; NORIA_API_KEY, else the operator's own session.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group(name="batch")
def command() -> None:
    """Batches: many requests in one JSONL file, answered when there is room."""


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", default="/v1/chat/completions", show_default=True, help="What every line asks.")
@click.option("--window", default="24h", show_default=True, help="How long it may take (s, m, h or d).")
@click.option("--wait", is_flag=True, help="Return when it is over; exit 1 where it was not completed.")
@_KEY
@_JSON
def create(file: Path, *, endpoint: str, window: str, wait: bool, key: str | None, as_json: bool) -> None:
    """Hand in FILE, one request a line in OpenAI's format."""
    kind, body = _form(file)
    stored = _ask("POST", "/v1/files", body, key=key, kind=kind)
    asked = {"input_file_id": stored["id"], "endpoint": endpoint, "completion_window": window}
    batch = _ask("POST", "/v1/batches", msgspec.json.encode(asked), key=key)
    while wait and batch["status"] in OPEN:
        time.sleep(LOOK)
        batch = _ask("GET", f"/v1/batches/{batch['id']}", key=key)
    _show(batch, as_json)
    if wait and batch["status"] != "completed":
        raise click.exceptions.Exit(1)


@command.command(name="list")
@_KEY
@_JSON
def several(key: str | None, as_json: bool) -> None:
    """Every batch of the key, or of its team, newest first."""
    page = _ask("GET", "/v1/batches?limit=1000", key=key)
    if as_json:
        emit(page["data"])
        return
    for batch in page["data"]:
        click.echo(_line(batch))


@command.command()
@click.argument("id")
@_KEY
@_JSON
def show(id: str, key: str | None, as_json: bool) -> None:
    """One batch: how far it is, or what is wrong with its file, line by line."""
    _show(_ask("GET", f"/v1/batches/{id}", key=key), as_json)


@command.command()
@click.argument("id")
@_KEY
@_JSON
def cancel(id: str, key: str | None, as_json: bool) -> None:
    """End a batch; what was answered is delivered."""
    _show(_ask("POST", f"/v1/batches/{id}/cancel", key=key), as_json)


@command.command()
@click.argument("id")
@click.option("--errors", is_flag=True, help="The lines that failed instead of those that were answered.")
@_KEY
def results(id: str, errors: bool, key: str | None) -> None:
    """The results of a batch as JSONL on stdout."""
    batch = _ask("GET", f"/v1/batches/{id}", key=key)
    file = batch["error_file_id" if errors else "output_file_id"]
    if file:
        click.echo(asyncio.run(_send("GET", f"/v1/files/{file}/content", b"", key=key)).decode(), nl=False)
    elif batch["status"] in OPEN:
        raise Refused(f"The batch is still {batch['status']}.", code="not_ready")


def _show(batch: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(batch)
        return
    click.echo(_line(batch))
    for error in (batch["errors"] or {}).get("data", ()):
        where = f"line {error['line']}: " if error["line"] else ""
        click.echo(f"  {where}{error['message']}")


def _line(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    return (
        f"{batch['id']}  {batch['status']:<11}  {counts['completed']} of {counts['total']} answered, {counts['failed']} failed"
    )


def _ask(method: str, path: str, body: bytes = b"", *, key: str | None, kind: str = "application/json") -> Any:
    return msgspec.json.decode(asyncio.run(_send(method, path, body, key=key, kind=kind)))


async def _send(method: str, path: str, body: bytes, *, key: str | None, kind: str = "application/json") -> bytes:
    from noria.kit.http_client import HttpClient

    client = HttpClient(gateway_url(), first_timeout=600.0, total_timeout=1200.0, max_body=1 << 30)
    headers = [("content-type", kind), ("authorization", f"Bearer {bearer(key)}")]
    try:
        status, _, answer = await client.send(method, path, headers, body)
    finally:
        await client.close()
    if status >= 400:
        try:
            error = msgspec.json.decode(answer)["error"]
        except (msgspec.DecodeError, KeyError, TypeError):
            error = {"message": f"The service answered {status}.", "code": None}
        raise Refused(str(error["message"]), code=error["code"])
    return answer


def _form(file: Path) -> tuple[str, bytes]:
    """The upload's content type and body."""
    mark = secrets.token_hex(16)
    name = file.name.replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
    head = (
        f'--{mark}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{mark}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    )
    return f"multipart/form-data; boundary={mark}", head.encode() + file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
