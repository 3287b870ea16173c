"""The one extension mechanism: file name = id = configuration value = URL scheme = docs page.

`load("checks", "pii", Check)` looks for `noria.checks.pii`, then for an entry point named `pii` in the
group `noria.checks`, then for `./extensions/checks/pii.py`. The module must define exactly one public
subclass of the base. Nothing is imported until it is asked for. Idea after lighteval's scanned task
files and verifiers' id-is-module rule: one new file, no edit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import import_module, util
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar

from noria.contracts.error import ConfigError, MissingDependency, NotFound

T = TypeVar("T")

FOLDER = Path("extensions")
"""Where a user's own extensions lie, relative to the working directory."""

_ID = re.compile(r"[a-z][a-z0-9_]*\Z")


def ids(kind: str) -> list[str]:
    """Every id of a kind that could be loaded from here, sorted."""
    package = import_module(f"noria.{kind}")
    shipped = {m.name for m in iter_modules(package.__path__) if not m.name.startswith("_")}
    plugged = {e.name for e in entry_points(group=f"noria.{kind}")}
    local = {p.stem for p in (FOLDER / kind).glob("*.py") if not p.stem.startswith("_")}
    return sorted(shipped | plugged | local)


def load(kind: str, id: str, base: type[T]) -> type[T]:
    """The implementation `id` of `kind`.

    Raises `NotFound` with the nearest ids, `ConfigError` where the module breaks the rule of one
    implementation a file, `MissingDependency` with the `pip install` line where a library is absent.
    """
    module = _module(kind, id, FOLDER.resolve())
    require(getattr(module, "requires", ()), f"{kind}/{id}")
    found = [
        v
        for name, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, base) and v.__module__ == module.__name__ and not name.startswith("_")
    ]
    if len(found) != 1:
        names = ", ".join(v.__name__ for v in found) or "none"
        raise ConfigError(
            f"The {kind} extension {id!r} must define exactly one public subclass of {base.__name__}; it defines {names}.",
            where=str(module.__file__),
        )
    cls: Any = found[0]
    require(getattr(cls, "requires", ()), f"{kind}/{id}")
    cls.id = id
    return cls  # type: ignore[no-any-return]  # proven a subclass of `base` above


def scheme(url: str) -> str:
    """The id of the engine that a store's URL names: some engines have a second name.

    >>> scheme("postgresql+tls://host/db")
    'postgres'
    """
    found = url.partition("://")[0].partition("+")[0]
    return {"postgresql": "postgres", "rediss": "redis"}.get(found, found)


def engine(scheme: str) -> Any:
    """The `ENGINE` of the module that serves a URL scheme."""
    module = _module("engines", scheme, FOLDER.resolve())
    found = getattr(module, "ENGINE", None)
    if found is None:
        raise ConfigError(f"The engine {scheme!r} exports no ENGINE.", where=str(module.__file__))
    require(found.requires, f"engines/{scheme}")
    return found


def require(requirements: Iterable[str], what: str) -> None:
    """Check that libraries are installed, by their `name>=version` lines, without importing them."""
    missing = []
    for line in requirements:
        name, _, wanted = line.partition(">=")
        try:
            have = version(name.split("[")[0])
        except PackageNotFoundError:
            missing.append(line)
            continue
        if wanted and _numbers(have) < _numbers(wanted):
            missing.append(line)
    if missing:
        lines = " ".join(f"'{m}'" for m in missing)
        raise MissingDependency(f"{what} needs {', '.join(missing)}.", hint=f"Install it: pip install {lines}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def _module(kind: str, id: str, folder: Path) -> ModuleType:
    if not _ID.match(id):
        raise ConfigError(f"{id!r} is not an extension id.", hint="Ids are lower-case words: [a-z][a-z0-9_]*.")
    name = f"noria.{kind}.{id}"
    if util.find_spec(name) is not None:
        return import_module(name)
    for point in entry_points(group=f"noria.{kind}", name=id):
        return import_module(point.module)
    path = folder / kind / f"{id}.py"
    loaded = sys.modules.get(f"noria_extensions.{kind}.{id}")
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    if path.is_file():
        return _from_file(f"noria_extensions.{kind}.{id}", path)
    raise NotFound.nearest(kind.removesuffix("s"), id, ids(kind), code="unknown_extension")


def _from_file(name: str, path: Path) -> ModuleType:
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be loaded as Python.")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
