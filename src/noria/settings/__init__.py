"""One typed settings tree: `noria.yaml` (or JSON) and the environment in, frozen contract values out.

`environment` (folders, secrets) → `document` (YAML with positions) → `tree` (the shape) → `meaning` (the
references) → `file` (load) → `snapshot` (the pieces of a Snapshot). Names resolve on first use, so that a
worker that only wants `resolve_secret` does not pay for pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noria.settings.environment import config_path, home, log_level, resolve_secret
    from noria.settings.file import Loaded, default, load, loads
    from noria.settings.meaning import Catalog, installed
    from noria.settings.problem import InvalidSettings, Problem
    from noria.settings.snapshot import apps, embedders, endpoints, guards, prompts, store_urls
    from noria.settings.tree import Settings, schema

_PUBLIC = {
    "config_path": "environment",
    "home": "environment",
    "log_level": "environment",
    "resolve_secret": "environment",
    "Loaded": "file",
    "default": "file",
    "load": "file",
    "loads": "file",
    "Catalog": "meaning",
    "installed": "meaning",
    "InvalidSettings": "problem",
    "Problem": "problem",
    "apps": "snapshot",
    "embedders": "snapshot",
    "endpoints": "snapshot",
    "guards": "snapshot",
    "prompts": "snapshot",
    "store_urls": "snapshot",
    "Settings": "tree",
    "schema": "tree",
}

__all__ = [  # noqa: RUF022  grouped as the story goes, not by letter
    "home", "config_path", "log_level", "resolve_secret",
    "load", "loads", "Loaded", "default", "Settings", "schema",
    "Catalog", "installed", "InvalidSettings", "Problem",
    "apps", "endpoints", "embedders", "guards", "prompts", "store_urls",
]  # fmt: skip

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC:
            return getattr(import_module(f"noria.settings.{_PUBLIC[name]}"), name)
        raise AttributeError(f"module 'noria.settings' has no attribute {name!r}")
