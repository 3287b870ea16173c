"""What Noria reads from its environment, and nowhere else: NORIA_HOME, NORIA_CONFIG, NORIA_LOG, secrets by name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from noria.contracts.error import ConfigError, NotFound

CONFIG_NAMES = ("noria.yaml", "noria.yml", "noria.json")
"""Looked for in the working directory, in this order."""

LOG_LEVELS = ("debug", "info", "warning", "error")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where state lives: NORIA_HOME, else `.noria` in the working directory. Absolute; need not exist."""
    return Path(environ.get("NORIA_HOME") or ".noria").expanduser().absolute()


def config_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file: NORIA_CONFIG, else the first of `CONFIG_NAMES` that is there, else None.

    Raises `ConfigError` where NORIA_CONFIG names a file that does not exist.
    """
    named = environ.get("NORIA_CONFIG")
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"NORIA_CONFIG names {str(path)!r}, which is not a file.")
        return path
    return next((p.absolute() for p in map(Path, CONFIG_NAMES) if p.is_file()), None)


def log_level(environ: Mapping[str, str] = os.environ) -> str:
    """NORIA_LOG: one of `LOG_LEVELS`, `info` when unset. Raises `ConfigError` with the nearest level."""
    level = environ.get("NORIA_LOG", "").lower() or "info"
    if level not in LOG_LEVELS:
        unknown = NotFound.nearest("log level", level, list(LOG_LEVELS))
        raise ConfigError(unknown.message, where="NORIA_LOG", hint=unknown.hint)
    return level


def reference_problem(value: str) -> str | None:
    """What is wrong with a reference to a secret, or None. Never repeats the value: it may be the secret itself."""
    scheme, found, rest = value.partition(":")
    if not found or scheme not in {"env", "file"}:
        return "A secret must not stand in the configuration. Use env:NAME or file:PATH"
    if not rest:
        return f"{scheme}: names nothing. Use env:NAME or file:PATH"
    if scheme == "env" and not _VARIABLE.match(rest):
        return "What follows env: is not a variable name ([A-Za-z_][A-Za-z0-9_]*)"
    return None


def resolve_secret(reference: str, environ: Mapping[str, str] = os.environ) -> str:
    """The secret behind `env:NAME` or `file:PATH`, without surrounding white space; "" for an empty reference.

    Raises `ConfigError` that names the variable or the file, never the value.
    """
    if not reference:
        return ""
    wrong = reference_problem(reference)
    if wrong:
        raise ConfigError(f"{wrong}.")
    scheme, _, name = reference.partition(":")
    value = _variable(name, environ) if scheme == "env" else _file(name)
    if not value:
        raise ConfigError(f"The secret {reference!r} is empty.")
    return value


def _variable(name: str, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise ConfigError(f"The environment variable {name} is not set.", hint=f"Set it: export {name}=…")
    return environ[name].strip()


def _file(name: str) -> str:
    try:
        return Path(name).read_text("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"The secret file {name} is not UTF-8 text.") from None
    except OSError as e:
        raise ConfigError(f"The secret file {name} cannot be read: {e.strerror}.") from None
