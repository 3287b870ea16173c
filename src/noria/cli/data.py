"""`noria data`: datasets and their versions, from files and traffic to what is trained on and judged by."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click
import msgspec

from noria.cli.service import Refused, call, emit, keeper
from noria.settings import home

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
NOTE = click.option("--note", default="", help="For people.")
PII = click.option(
    "--pii",
    type=click.Choice(["mask", "drop", "flag", "off"]),
    default="mask",
    show_default=True,
    help="What becomes of personal data, before anything is stored.",
)
FRESH = click.option("--fresh", is_flag=True, help="Instead of the rows that the dataset has, not beside them.")
NEAR = click.option(
    "--near", type=float, default=0.8, show_default=True, help="Jaccard similarity from which on rows are near."
)
EXACT = click.option("--exact", is_flag=True, help="Only rows that are the same, width, case and space apart.")
WHOLE = click.option("--whole", is_flag=True, help="Compare answer and label too, not only what is asked.")
WORDS = click.option("--words", type=int, default=3, show_default=True, help="Words of a shingle.")
CHARS = click.option(
    "--chars", type=int, default=3, show_default=True, help="Characters of a shingle, in Chinese and the like."
)
SHOWN = 20
PAGE = 500


@click.group(name="data")
def command() -> None:
    """Datasets: rows with provenance, and versions of them that never change.

    A version is named NAME (its latest), NAME@d1:… or d1:…; one split of it NAME/SPLIT. Ids may be cut short.
    """


@command.command(name="import")
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", default="", help="The column that is asked, where it is not called as usual.")
@click.option("--answer", default="", help="The column of the answer.")
@click.option("--label", default="", help="The column of the label.")
@click.option("--group", default="", help="The column of what must stay in one split: a conversation, a document.")
@click.option("--split", default="split", show_default=True, help="The column that says which split a row is in.")
@click.option(
    "--user", default="", help="The column of the person it is about; becomes a keyed hash before anything is stored."
)
@click.option("--tag", "tags", multiple=True, help="A column to keep as a tag.")
@click.option("--lang", default="auto", show_default=True, help="The language (ISO 639-1), or auto.")
@click.option("--strict", is_flag=True, help="Stop at the first bad line and make nothing; else it is rejected by its number.")
@PII
@FRESH
@NOTE
@JSON
def import_(
    name: str, files: tuple[Path, ...], *, text: str, answer: str, label: str, group: str, split: str, user: str,
    tags: tuple[str, ...], lang: str, strict: bool, pii: str, fresh: bool, note: str, as_json: bool,
) -> None:  # fmt: skip
    """Rows of FILES (.jsonl, .csv, .tsv, each also .gz, or .parquet) into dataset NAME."""
    from noria.app import dataset_steps as steps
    from noria.data.reading import Fields

    fields = Fields(text, answer, label, "", group, split, user, tags)
    with _client() as client, _progress("reading", as_json) as tell:
        made = steps.import_files(
            client, name, files, fields,
            pii=_action(pii), strict=strict, lang=lang, fresh=fresh, note=note, tell=tell,
        )  # fmt: skip
    _made(made, as_json)


@command.command()
@click.argument("name")
@click.argument("filter", nargs=-1)
@click.option("--app", default="", help="Only of this app.")
@click.option("--release", default="", help="Only of this release, by its id.")
@click.option("--since", default="", help="From this time on, such as 2026-11-22T14:00 (UTC).")
@click.option("--until", default="", help="Before this time.")
@click.option("--outcome", default="ok", show_default=True, help="Only with this outcome; empty for all.")
@click.option("--feedback/--no-feedback", default=None, help="Only what somebody judged, or nobody.")
@click.option("--limit", type=click.IntRange(min=1), help="Look at so many exchanges at most, the newest.")
@PII
@FRESH
@NOTE
@JSON
def harvest(
    name: str, filter: tuple[str, ...], *, app: str, release: str, since: str, until: str, outcome: str,
    feedback: bool | None, limit: int | None, pii: str, fresh: bool, note: str, as_json: bool,
) -> None:  # fmt: skip
    """What the service was asked and answered, into dataset NAME. FILTER: conditions as of `noria trace list`."""
    from noria.app import dataset_steps as steps

    given = (("app=", app), ("release=", release), ("time>=", since), ("time<", until), ("outcome=", outcome))
    words = [*filter, *(f"{column}{_quoted(value)}" for column, value in given if value)]
    with _client() as client, _progress("harvesting", as_json) as tell:
        made = steps.harvest(
            client, name, " ".join(words), pii=_action(pii), feedback=feedback, limit=limit, fresh=fresh, note=note, tell=tell
        )
    _made(made, as_json)


@command.command()
@click.argument("version")
@click.option("--min-chars", type=int, default=1, show_default=True, help="Of what is asked.")
@click.option("--max-chars", type=int, help="Of prompt and answer together.")
@click.option("--max-control", type=float, default=0.0, show_default=True, help="Share of control characters.")
@click.option("--lang", "langs", multiple=True, help="Languages wanted (ISO 639-1); may be given several times.")
@click.option("--need-answer", is_flag=True)
@click.option("--need-label", is_flag=True)
@NOTE
@JSON
def clean(
    version: str, *, min_chars: int, max_chars: int | None, max_control: float, langs: tuple[str, ...],
    need_answer: bool, need_label: bool, note: str, as_json: bool,
) -> None:  # fmt: skip
    """Leave out rows that are empty, too short, too long, broken or of another language."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference
    from noria.data.clean import Rules

    rules = Rules(min_chars, max_chars, max_control, langs, need_answer, need_label)
    with _client() as client, _progress("cleaning", as_json) as tell:
        made = steps.clean(client, Reference.read(version), rules, note=note, tell=tell)
    _made(made, as_json)


@command.command()
@click.argument("version")
@NEAR
@EXACT
@WHOLE
@WORDS
@CHARS
@NOTE
@JSON
def dedup(version: str, *, near: float, exact: bool, whole: bool, words: int, chars: int, note: str, as_json: bool) -> None:
    """Leave out rows that say the same as another, word for word or nearly."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference
    from noria.data.dedup import Likeness

    likeness = Likeness(None if exact else near, words, chars, whole)
    with _client() as client, _progress("comparing", as_json) as tell:
        made = steps.dedup(client, Reference.read(version), likeness, note=note, tell=tell)
    _made(made, as_json)


@command.command()
@click.argument("version")
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='One line a row: {"row": "…", "label": "…"}, or CSV with these columns. Row ids may be cut short.',
)
@click.option("--rule", "rules", multiple=True, help="LABEL=PATTERN: rows whose prompt matches (RE2, case ignored).")
@click.option("--overwrite", is_flag=True, help="Rules change labels that are there, too.")
@NOTE
@JSON
def label(version: str, *, path: Path | None, rules: tuple[str, ...], overwrite: bool, note: str, as_json: bool) -> None:
    """Set or change labels, from a file or by rules."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference
    from noria.data.label import read_rule
    from noria.data.reading import labels_of

    if path is None and not rules:
        raise click.UsageError("Say which labels: --file, --rule or both.")
    given = labels_of(path) if path else {}
    read = [read_rule(r) for r in rules]
    with _client() as client, _progress("labelling", as_json) as tell:
        made, changed = steps.label(client, Reference.read(version), given, read, overwrite=overwrite, note=note, tell=tell)
    _made(made, as_json, f"{changed} labels changed", {"changed": changed})


@command.command()
@click.argument("version")
@click.option(
    "--split", "shares", default="train=0.8,validation=0.1,test=0.1", show_default=True, help="Splits with their shares."
)
@click.option("--seed", default="", help="Another seed gives another split.")
@click.option("--stratify", is_flag=True, help="The same shares in every label.")
@click.option("--keep", is_flag=True, help="Rows that are in one of these splits already stay there.")
@NOTE
@JSON
def version(version: str, *, shares: str, seed: str, stratify: bool, keep: bool, note: str, as_json: bool) -> None:
    """Make a version whose rows are split, by a hash of their group or of what they ask: a row never changes sides."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference
    from noria.data.split import read_ratios

    ratios = read_ratios(shares, seed=seed, stratify=stratify)
    with _client() as client, _progress("splitting", as_json) as tell:
        made = steps.split(client, Reference.read(version), ratios, keep=keep, note=note, tell=tell)
    _made(made, as_json)


@command.command()
@click.argument("version")
@JSON
def verify(version: str, as_json: bool) -> None:
    """Open every row, compute its id and the version's root anew. Exit 1 where something does not fit."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference

    with _client() as client, _progress("verifying", as_json) as tell:
        found = steps.verify(client, Reference.read(version), tell=tell)
    if as_json:
        emit(found)
    else:
        for row, what in found.bad:
            click.echo(f"{row or 'root'}: {what}", err=True)
        erased = f", {found.erased} of them erased" if found.erased else ""
        click.echo(f"{found.version}  {'whole' if found.passed else 'DAMAGED'}: {found.rows} rows{erased}.")
    if not found.passed:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("before")
@click.argument("after")
@click.option("--limit", type=int, default=SHOWN, show_default=True, help="Rows of each kind to show.")
@JSON
def diff(before: str, after: str, *, limit: int, as_json: bool) -> None:
    """What differs between two versions: rows, their splits, labels."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference

    with _client() as client:
        found = steps.difference(client, Reference.read(before), Reference.read(after))
    if as_json:
        emit(found)
        return
    kinds: tuple[tuple[str, str, Sequence[Any], Callable[[Any], str]], ...] = (
        ("+", "added", found.added, lambda m: f"{m.row[:16]} {m.split}"),
        ("-", "removed", found.removed, lambda m: f"{m.row[:16]} {m.split}"),
        (">", "moved", found.moved, lambda m: f"{m.row[:16]} {m.before} → {m.after}"),
        ("~", "relabelled", found.relabelled, lambda r: f"{r.before_row[:16]} → {r.after_row[:16]}: {r.before} → {r.after}"),
    )
    for mark, what, items, line in kinds:
        click.echo(f"{len(items)} {what}")
        for item in items[:limit]:
            click.echo(f"  {mark} {line(item)}")


@command.command()
@click.argument("version")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--format", "format_", default="", help="jsonl, csv or parquet; that of the file's name when absent.")
@JSON
def export(version: str, file: Path, format_: str, as_json: bool) -> None:
    """Write the rows of VERSION to FILE, whole or not at all. The file is readable to its owner alone."""
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference

    with _client() as client, _progress("exporting", as_json) as tell:
        rows = steps.export(client, Reference.read(version), file, format_, tell=tell)
    emit({"file": str(file), "rows": rows}) if as_json else click.echo(f"{rows} rows → {file}", err=True)


@command.command()
@click.argument("train")
@click.argument("evaluation")
@NEAR
@EXACT
@WORDS
@CHARS
@click.option("--allow", type=float, default=0.0, show_default=True, help="Share of leaked rows that passes.")
@JSON
def leak(train: str, evaluation: str, *, near: float, exact: bool, words: int, chars: int, allow: float, as_json: bool) -> None:
    """The leak gate: rows of EVALUATION that stand in TRAIN, word for word or nearly. Exit 1 where there are some.

    `noria data leak help/train help/test`
    """
    from noria.app import dataset_steps as steps
    from noria.app.dataset_client import Reference
    from noria.data.dedup import Likeness

    likeness = Likeness(None if exact else near, words, chars)
    with _client() as client, _progress("comparing", as_json) as tell:
        found = steps.leak(client, Reference.read(train), Reference.read(evaluation), likeness, allowed=allow, tell=tell)
    if as_json:
        emit(found)
    else:
        for p in found.pairs[:SHOWN]:
            click.echo(f"  {p.evaluation[:16]} is in train as {p.train[:16]}  {p.rule} {p.similarity:.2f}")
        click.echo(
            f"{'passed' if found.passed else 'LEAK'}: {found.exact} exact and {found.near} near of {found.evaluation} rows"
            f" ({found.share:.2%}) stand among the {found.train} of the training set; {found.allowed:.2%} may."
        )
    if not found.passed:
        raise click.exceptions.Exit(1)


@command.command(name="list")
@click.argument("name", required=False)
@JSON
def list_(name: str | None, as_json: bool) -> None:
    """Every dataset with its latest version; or all versions of NAME, the latest first."""
    found: list[dict[str, Any]] = []
    path: str | None = f"/api/datasets/{quote(name, safe='')}" if name else "/api/datasets"
    offset = 0
    with keeper():
        while path is not None:
            page = call("GET", f"{path}?offset={offset}" if name else path)
            found += page["versions"]
            offset = page.get("next") or 0
            path = path if offset else None
    if as_json:
        emit(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("dataset", "version", "made", "rows", "splits", "rejected", "by", "note", box=None)
    for v in found:
        made = dt.datetime.fromtimestamp(v["made_ns"] / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M")
        splits = ", ".join(f"{k} {n}" for k, n in v["splits"].items())
        by = str(v["recipe"].get("step", ""))
        table.add_row(v["name"], v["id"][:15], made, str(v["rows"]), splits, str(v["rejected"]), by, v["note"])
    Console().print(table if found else "There is no dataset yet. Make one: `noria data import NAME FILE`.")


@command.command()
@click.argument("version")
@click.option("--rows", "limit", type=click.IntRange(min=0), default=5, show_default=True, help="Rows to show.")
@JSON
def show(version: str, *, limit: int, as_json: bool) -> None:
    """A version: what it is made of and how, and its first rows."""
    from itertools import islice

    from noria.app.dataset_client import Reference

    reference = Reference.read(version)
    with _client() as client:
        found = client.find(reference)
        rows = list(islice(client.shown(found, reference.split), limit)) if limit else []
    if as_json:
        emit({"version": {**msgspec.structs.asdict(found), "rows": found.rows}, "rows": rows})
        return
    splits = ", ".join(f"{k} {n}" for k, n in found.splits.items())
    click.echo(f"{found.name}  {found.id}\n{found.rows} rows ({splits}), {found.rejected} rejected")
    click.echo(f"from {', '.join(p[:15] for p in found.parents) or 'nothing before'}; {found.note}".rstrip("; "))
    click.echo(f"recipe {msgspec.json.encode(found.recipe).decode()}")
    for s in rows:
        text = " / ".join(str(m.get("content", "")) for m in s.row.messages) if s.row else s.state
        click.echo(f"  {s.id[:16]} {s.split:<10} {s.row.label if s.row else '':<20} {' '.join(text.split())[:80]}")


@command.command()
@click.argument("version")
@click.option("--rule", default="", help="Only of this rule (near, too_short, …) or stage (dedup, clean, …).")
@click.option("--limit", type=click.IntRange(min=1), default=SHOWN, show_default=True)
@JSON
def rejected(version: str, *, rule: str, limit: int, as_json: bool) -> None:
    """Rows that were left out, with the reason, and what they said where that is stored."""
    from noria.app.dataset_client import Reference

    found: list[dict[str, Any]] = []
    with _client() as client:
        v = client.find(Reference.read(version))
        offset: int | None = 0
        while offset is not None and len(found) < limit:
            query = urlencode({"offset": offset, "limit": PAGE, "content": "true"})
            page = call("GET", f"/api/datasets/{v.name}/{v.id}/rejections?{query}")
            found += [r for r in page["rejections"] if rule in ("", r["rule"], r["stage"])]
            offset = page["next"]
    found = found[:limit]
    if as_json:
        emit(found)
        return
    for r in found:
        values = "" if r["value"] is None else f" {r['value']:g} ({r['threshold']:g})"
        instead = f", kept: {r['survivor'][:16]}" if r["survivor"] else ""
        text = (
            " / ".join(str(m.get("content", "")) for m in r["content"]["messages"])
            if r["content"]
            else r["detail"] or r["source"]
        )
        click.echo(f"  {r['row'][:16] or '-':<16} {r['stage']}.{r['rule']}{values}{instead}  {' '.join(text.split())[:80]}")
    click.echo(f"showing {len(found)} of {v.rejected}", err=True)


def _action(pii: str) -> Any:
    return None if pii == "off" else pii


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _made(made: Any, as_json: bool, more: str = "", also: dict[str, Any] | None = None) -> None:
    v = made.version
    if as_json:
        emit(
            {
                "version": {**msgspec.structs.asdict(v), "rows": v.rows},
                "new": made.new,
                "rejected": made.rejected,
                **(also or {}),
            }
        )
        return
    splits = ", ".join(f"{k} {n}" for k, n in v.splits.items())
    click.echo(f"{v.name}  {v.id}{'' if made.new else '  (was there already)'}")
    click.echo(f"{v.rows} rows ({splits})" + (f"; {more}" if more else ""))
    if made.rejected:
        click.echo(
            "left out: "
            + ", ".join(f"{n} {rule}" for rule, n in made.rejected.items())
            + f"; see `noria data rejected {v.name}`"
        )


@contextmanager
def _client() -> Iterator[Any]:
    """Datasets through the keeper's socket; a keeper is started for as long as it takes where none runs."""
    from noria.app.dataset_client import DatasetClient
    from noria.app.link import SOCKET
    from noria.kit.http_client import HttpClient

    with keeper(), asyncio.Runner() as runner:
        client = HttpClient(
            "http://keeper", uds=str(home() / "run" / SOCKET), first_timeout=300.0, total_timeout=3600.0, max_body=1 << 30
        )

        def ask(method: str, path: str, body: bytes) -> bytes:
            status, _, answer = runner.run(client.send(method, path, [("content-type", "application/json")], body))
            if status >= 400:
                error = msgspec.json.decode(answer).get("error") or {}
                raise Refused(str(error.get("message") or f"The service answered {status}."), code=error.get("code"))
            return answer

        try:
            yield DatasetClient(ask)
        finally:
            runner.run(client.close())


@contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
