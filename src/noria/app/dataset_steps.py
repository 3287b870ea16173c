"""The steps that make one version of a dataset from another, against the service: import, harvest, clean, de-duplicate, label, split;
and those that look: verify, compare, leak gate, export. Each new version names its parents and the recipe that made it.

Rejections stay with a dataset along its versions, until a row is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.app.dataset_client import DatasetClient, Reference
from noria.app.datasets import Draft
from noria.contracts.dataset import Member, Rejection, Row, Version
from noria.contracts.error import ConfigError, RequestError, StoreError
from noria.contracts.stage import Check, Sample
from noria.data import clean as cleaning
from noria.data import dedup as dedup_
from noria.data import diff as diff_
from noria.data import export as exporting
from noria.data import leak as leak_
from noria.data import split as splitting
from noria.data.harvest import judged as judged_
from noria.data.harvest import row_of
from noria.data.label import Rule, label_for
from noria.data.personal import Action, Mask, protect
from noria.data.reading import Bad, Fields, Offered, file_digest, read_file
from noria.data.row import prompt_key, version_id
from noria.gateway.language import LANGUAGES, detect
from noria.guard.action import scrub
from noria.kit import extension

Tell = Callable[[int, int | None], None]
"""(rows done, rows in all where that is known): progress."""

BATCH = 500
DEFAULT_SPLIT = "train"


class Made(msgspec.Struct, frozen=True):
    """What a step came to."""

    version: Version
    new: bool
    """False where the dataset had this version already: nothing was to be done."""
    rejected: dict[str, int]
    """Rows that this step left out, by `stage.rule`."""


class Verified(msgspec.Struct, frozen=True):
    """What verification found. `bad`: (row id, what is wrong with it)."""

    version: str
    passed: bool
    rows: int
    erased: int
    root: str
    bad: tuple[tuple[str, str], ...]


def _quiet(_done: int, _total: int | None) -> None:
    return


def personal_data() -> Mask:
    """What finds and masks personal data in rows: the check `pii` with its defaults."""
    cls = extension.load("checks", "pii", Check)
    check = cls(msgspec.convert({}, cls.Config))

    def mask(text: str) -> tuple[str, tuple[str, ...]]:
        findings = check.judge(Sample(input=text)).findings if text else ()
        return (scrub(text, findings), tuple(f.label for f in findings)) if findings else (text, ())

    return mask


class _Gathering:
    """Rows on their way into a version: protected, stored in batches, each in the split that it belongs to."""

    def __init__(self, client: DatasetClient, parent: Version | None, action: Action | None) -> None:
        self._client = client
        self._mask = personal_data() if action else None
        self._action: Action = action or "mask"
        self._waiting: list[Offered] = []
        self.members: dict[str, str] = {m.row: m.split for m in client.members(parent)} if parent else {}
        self._before = frozenset(self.members)
        self._subjects: dict[str, str] = {}
        self.rejected: list[Rejection] = []

    def take(self, offered: Offered) -> None:
        """One row more."""
        row = protect(offered.row, self._mask, self._action) if self._mask else offered.row
        if isinstance(row, Rejection):
            self.rejected.append(row)
            return
        self._waiting.append(Offered(row, offered.split))
        if len(self._waiting) >= BATCH:
            self.flush()

    def hide(self, users: Iterable[str]) -> None:
        """Learn the keyed hashes of users."""
        if new := sorted(set(users) - self._subjects.keys() - {""}):
            self._subjects |= dict(zip(new, self._client.subjects(new), strict=True))

    def flush(self) -> None:
        """Store what waits."""
        if not self._waiting:
            return
        for offered, name in zip(self._waiting, self._client.add([o.row for o in self._waiting]), strict=True):
            split = offered.split or DEFAULT_SPLIT
            if name not in self.members:
                self.members[name] = split
            elif name not in self._before:  # the same line twice; which split it is in may not depend on their order
                self.members[name] = min(self.members[name], split)
                self.rejected.append(Rejection(name, "import", "repeated", survivor=name, source=offered.row.source.ref))
        self._waiting.clear()

    def take_named(self, offered: Sequence[Offered]) -> None:
        """Rows whose subject is still the user's name: it leaves this process as a keyed hash only."""
        self.hide(o.row.subject for o in offered)
        for o in offered:
            self.take(Offered(replace(o.row, subject=self._subjects.get(o.row.subject, "")), o.split))


def _finish(
    client: DatasetClient, name: str, members: Iterable[Member], rejected: list[Rejection], parent: Version | None, *,
    recipe: dict[str, Any], note: str,
) -> Made:  # fmt: skip
    listed = list(members)
    there = {m.row for m in listed}
    counts: dict[str, int] = {}
    for r in rejected:
        counts[f"{r.stage}.{r.rule}"] = counts.get(f"{r.stage}.{r.rule}", 0) + 1
    earlier = [r for r in client.rejections(parent) if r.row not in there] if parent else []
    if not listed:
        why = ", ".join(f"{n} {rule}" for rule, n in sorted(counts.items())) or "there was nothing"
        raise RequestError(f"No row is left: {why}.", code="no_rows")
    draft = Draft(recipe, (parent.id,) if parent else (), note)
    version, new = client.put(name, listed, [*earlier, *rejected], draft)
    return Made(version, new, dict(sorted(counts.items())))


def import_files(
    client: DatasetClient, name: str, paths: Sequence[Path], fields: Fields, *,
    pii: Action | None = "mask", strict: bool = False, lang: str = "", fresh: bool = False, note: str = "", tell: Tell = _quiet,
) -> Made:  # fmt: skip
    """Rows of files, beside those that the dataset has (`fresh`: instead of them).

    A bad line is rejected with its number and the reason; with `strict` it is a `ConfigError`, and no version is made.
    """
    parent = client.latest(name)
    gathered = _Gathering(client, None if fresh else parent, pii)
    waiting: list[Offered] = []
    done = 0
    for item in _offered(paths, fields, lang):
        done += 1
        if isinstance(item, Bad):
            if strict:
                raise ConfigError(item.detail)
            gathered.rejected.append(Rejection("", "import", item.rule, detail=item.detail, source=item.ref))
            continue
        waiting.append(item)
        if len(waiting) == BATCH:
            gathered.take_named(waiting)
            waiting = []
            tell(done, None)
    gathered.take_named(waiting)
    gathered.flush()
    tell(done, done)
    files = [{"name": p.name, "sha256": file_digest(p)} for p in paths]
    recipe = {"step": "import", "files": files, "fields": fields._asdict(), "pii": pii or "off", "lang": lang}
    members = (Member(row, split) for row, split in gathered.members.items())
    return _finish(client, name, members, gathered.rejected, None if fresh else parent, recipe=recipe, note=note)


def _offered(paths: Sequence[Path], fields: Fields, lang: str) -> Iterator[Offered | Bad]:
    for path in paths:
        for item in read_file(path, fields, subject=str, lang="" if lang == "auto" else lang):
            if lang == "auto" and isinstance(item, Offered) and not item.row.lang:
                yield Offered(replace(item.row, lang=detect(cleaning.asked_of(item.row))), item.split)
            else:
                yield item


def harvest(
    client: DatasetClient, name: str, filter: str, *,
    pii: Action | None = "mask", feedback: bool | None = None, limit: int | None = None, fresh: bool = False,
    onto: Version | None = None, judged: bool = False, split: str = "", note: str = "", tell: Tell = _quiet,
) -> Made:  # fmt: skip
    """Rows of what the service did, newest first, beside those that the dataset has (`fresh`: instead of them; `onto`: beside those
    of another version than the latest).

    `feedback`: only exchanges with it (True), or without (False). `judged`: only what a person corrected or labelled. `split`: where
    they go, in place of `train`.
    """
    parent = onto or client.latest(name)
    gathered = _Gathering(client, None if fresh else parent, pii)
    done = 0
    for done, (asked, total) in enumerate(client.exchanges(filter), 1):
        if feedback is None or bool(asked.feedback) == feedback:
            row = row_of(asked, detect)
            if judged and not isinstance(row, Rejection):
                row = judged_(asked, row)
            if not isinstance(row, Rejection):
                gathered.take(Offered(row, split))
            elif row.rule != "not_judged":  # nobody offered it
                gathered.rejected.append(row)
        if done % BATCH == 0:
            tell(done, total)
        if limit is not None and done >= limit:
            break
    gathered.flush()
    tell(done, done)
    recipe = {"step": "harvest", "filter": filter, "feedback": feedback, "limit": limit, "pii": pii or "off"}
    recipe |= {"judged": True} if judged else {}
    members = (Member(row, split) for row, split in gathered.members.items())
    return _finish(client, name, members, gathered.rejected, None if fresh else parent, recipe=recipe, note=note)


def clean(client: DatasetClient, reference: Reference, rules: cleaning.Rules, *, note: str = "", tell: Tell = _quiet) -> Made:
    """The version without the rows that fail a rule."""
    cleaning.check(rules, LANGUAGES)
    parent = client.find(reference)
    members: list[Member] = []
    rejected: list[Rejection] = []
    for name, split, row in _told(client, parent, tell, gone=rejected):
        no = cleaning.judge(name, row, rules, detect)
        if no is None:
            members.append(Member(name, split))
        else:
            rejected.append(no)
    return _finish(client, parent.name, members, rejected, parent, recipe=rules.recipe(), note=note)


def dedup(
    client: DatasetClient, reference: Reference, likeness: dedup_.Likeness, *, note: str = "", tell: Tell = _quiet
) -> Made:
    """The version without rows that say what another row says."""
    dedup_.check(likeness)
    parent = client.find(reference)
    places: dict[str, str] = {}
    rejected: list[Rejection] = []

    def rows() -> Iterator[tuple[str, Row]]:
        for name, split, row in _told(client, parent, tell, gone=rejected):
            places[name] = split
            yield name, row

    rejected += list(dedup_.duplicates(rows(), likeness))
    gone = {r.row for r in rejected}
    members = (Member(name, split) for name, split in places.items() if name not in gone)
    return _finish(client, parent.name, members, rejected, parent, recipe=likeness.recipe("dedup"), note=note)


def label(
    client: DatasetClient, reference: Reference, given: dict[str, str], rules: Sequence[Rule], *,
    overwrite: bool = False, note: str = "", tell: Tell = _quiet,
) -> tuple[Made, int]:  # fmt: skip
    """The version with labels from a file or by rules; and how many changed. A row with another label is another row: it takes the
    old one's place, in the same split.
    """
    parent = client.find(reference)
    whole = _whole_ids(given, [m.row for m in client.members(parent)])
    members: dict[str, str] = {}
    waiting: list[tuple[Row, str]] = []
    rejected: list[Rejection] = []
    changed = 0

    def flush() -> None:
        for new, (_, split) in zip(client.add([r for r, _ in waiting]), waiting, strict=True):
            members.setdefault(new, split)
        waiting.clear()

    for name, split, row in _told(client, parent, tell, gone=rejected):
        wanted = label_for(name, row, whole, rules, overwrite=overwrite)
        if wanted is None or wanted == row.label:
            members[name] = split
            continue
        changed += 1
        waiting.append((replace(row, label=wanted), split))
        if len(waiting) == BATCH:
            flush()
    if waiting:
        flush()
    shown = [{"label": r.label, "pattern": r.pattern} for r in rules]
    recipe = {"step": "label", "given": len(given), "rules": shown, "overwrite": overwrite}
    listed = (Member(row, split) for row, split in members.items())
    return _finish(client, parent.name, listed, rejected, parent, recipe=recipe, note=note), changed


def _whole_ids(given: dict[str, str], ids: Sequence[str]) -> dict[str, str]:
    """Labels by whole row ids; `given` may cut them short. Raises `RequestError` for a row that is not there, or not one alone."""
    from bisect import bisect_left

    found: dict[str, str] = {}
    for start, wanted in given.items():
        at = bisect_left(ids, start)
        fits = [i for i in ids[at : at + 2] if i.startswith(start)]
        if len(fits) != 1:
            what = "several rows" if fits else "no row"
            raise RequestError(f"{start!r} begins the id of {what} of this version.", code="row_not_found")
        found[fits[0]] = wanted
    return found


def split(
    client: DatasetClient, reference: Reference, ratios: splitting.Ratios, *,
    keep: bool = False, note: str = "", tell: Tell = _quiet,
) -> Made:  # fmt: skip
    """The version with its rows split anew. `keep`: what has one of these splits already stays there, and takes along what belongs
    to it; so a stratified split stays put while rows are added.
    """
    parent = client.find(reference)
    placed: list[splitting.Placed] = []
    kept: dict[str, str] = {}
    rejected: list[Rejection] = []
    names = {name for name, _ in ratios.shares}
    for name, at, row in _told(client, parent, tell, gone=rejected):
        unit = f"group:{row.group}" if row.group else f"prompt:{prompt_key(row)}"
        placed.append(splitting.Placed(name, unit, row.label))
        if keep and at in names:
            kept[unit] = max(kept.get(unit, at), at)
    of = splitting.assign(placed, ratios, kept=kept)
    members = (Member(row, name) for row, name in of.items())
    return _finish(client, parent.name, members, rejected, parent, recipe=ratios.recipe() | {"keep": keep}, note=note)


def leave_out(client: DatasetClient, reference: Reference, gone: Sequence[Rejection], *, note: str = "") -> Made:
    """The version without these rows; why each is gone is kept."""
    parent = client.find(reference)
    rows = {r.row for r in gone}
    members = (m for m in client.members(parent) if m.row not in rows)
    recipe = {"step": "leave_out", "stages": sorted({r.stage for r in gone}), "rows": len(rows)}
    return _finish(client, parent.name, members, list(gone), parent, recipe=recipe, note=note)


def verify(client: DatasetClient, reference: Reference, *, tell: Tell = _quiet) -> Verified:
    """Open every row, compute its id and the root anew. Erased rows do no harm: their ids are still what the root is over."""
    version = client.find(reference)
    members: list[Member] = []
    erased, bad = 0, []
    for shown in client.shown(version, content=False):
        members.append(Member(shown.id, shown.split))
        if shown.state == "erased":
            erased += 1
        elif shown.state != "ok":
            bad.append((shown.id, shown.detail or shown.state))
        tell(len(members), version.rows)
    top = version_id(members)
    if top != version.id:
        bad.append(("", f"The root over the rows is {top}, not {version.id}: rows or splits were changed."))
    return Verified(version.id, not bad, len(members), erased, top, tuple(bad))


def difference(client: DatasetClient, before: Reference, after: Reference) -> diff_.Difference:
    """What is in one version and not in the other, and labels that changed."""
    old, new = client.find(before), client.find(after)
    found = diff_.compare(client.members(old, before.split), client.members(new, after.split))
    gone, came = client.read(m.row for m in found.removed), client.read(m.row for m in found.added)
    return replace(found, relabelled=diff_.relabelled(gone, came))


def leak(
    client: DatasetClient, train: Reference, evaluation: Reference, likeness: dedup_.Likeness, *,
    allowed: float = 0.0, tell: Tell = _quiet,
) -> leak_.Leaks:  # fmt: skip
    """The leak gate between two sets of rows."""
    sides = [(client.find(r), r.split) for r in (train, evaluation)]
    if sides[0] == sides[1]:
        raise RequestError("These are the same rows.", code="same_rows", hint="Name two splits: NAME/train NAME/test.")
    learned, judged = (((name, row) for name, _, row in _told(client, v, tell, s)) for v, s in sides)
    return leak_.leaks(learned, judged, likeness, allowed=allowed)


def export(client: DatasetClient, reference: Reference, path: Path, format: str = "", *, tell: Tell = _quiet) -> int:
    """The rows of a version, or of one of its splits, as a file; how many."""
    version = client.find(reference)
    return exporting.write(path, _told(client, version, tell, reference.split), exporting.format_of(path, format))


def _told(
    client: DatasetClient, version: Version, tell: Tell, split: str = "", *, gone: list[Rejection] | None = None
) -> Iterator[tuple[str, str, Row]]:
    """(id, split, row) by row id; rows that were erased are told to `gone`."""
    total = version.splits[split] if split else version.rows
    for done, shown in enumerate(client.shown(version, split), 1):
        if shown.row is not None:
            yield shown.id, shown.split, shown.row
        elif shown.state != "erased":
            what = f"Row {shown.id} of {version.name} is {shown.state}: {shown.detail}"
            raise StoreError(what, code="row_damaged", hint=f"See `noria data verify {version.id}`.")
        elif gone is not None:
            gone.append(Rejection(shown.id, "erase", "erased"))
        if done % BATCH == 0 or done == total:
            tell(done, total)
