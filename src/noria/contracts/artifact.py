"""Artifacts: files that a journey made, named by what is in them, signed by who made them (ADR 23)."""

from __future__ import annotations

import msgspec

FINGERPRINT = "fingerprint.json"
"""The file of an artifact that says what must stand in the trained file beside it (`contracts.training.Fingerprint`)."""


class File(msgspec.Struct, frozen=True):
    """One file of an artifact."""

    name: str
    sha256: str
    bytes: int


class Artifact(msgspec.Struct, frozen=True):
    """The signed manifest. `id` is `a1:` + the BLAKE3 of the canonical form of kind, files, inputs and facts."""

    id: str
    kind: str
    """`adapter_gguf`, `model_gguf`, `report`, …"""
    files: tuple[File, ...]
    inputs: dict[str, str] = {}
    """What it was made from: `dataset` → `d1:…`, `base` → sha256, `job` → id, …"""
    facts: dict[str, str] = {}
    """What a server must know: `base`, `scale`, `context`; `prompt`: the digest of the system prompt that it was trained with."""
    made_ns: int = 0
    signer: str = ""
    """Ed25519 public key, hex."""
    signature: str = ""
    """Ed25519 over id, time and signer, hex."""
