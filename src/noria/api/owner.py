"""How a worker tells the keeper whose files and batches are meant (apart from `files`, which loads FastAPI)."""

from __future__ import annotations

from urllib.parse import urlencode

from noria.contracts.exchange import Exchange
from noria.contracts.release import Key

OWNER = "x-noria-owner"
UPLOAD = "x-noria-upload"
"""Names the file that a worker has put the body into (`kit.upload`)."""


def owner_header(x: Exchange, key: Key | None) -> tuple[str, str]:
    """The header by which a worker tells the keeper who asks: the key's team, else the key, else that none was needed."""
    scope = "open" if key is None else f"team:{key.team}" if key.team else key.id if key.id == "console" else f"key:{key.id}"
    return OWNER, urlencode({"tenant": x.tenant, "scope": scope, "key": key.id if key else ""})
