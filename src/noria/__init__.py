"""Noria: serve large language models as a service you own, and turn its traffic into the next, better model.

Import is cheap (no web, SQL or model library is loaded); names are resolved on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Check": "noria.contracts.stage",
    "Provider": "noria.contracts.stage",
    "Options": "noria.contracts.stage",
    "Verdict": "noria.contracts.verdict",
    "Finding": "noria.contracts.verdict",
    "Sample": "noria.contracts.stage",
    "NoriaError": "noria.contracts.error",
}

__all__ = [  # noqa: PLE0604  the lazy table is the list of public names
    "__version__",
    *_PUBLIC,
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'noria' has no attribute {name!r}")
