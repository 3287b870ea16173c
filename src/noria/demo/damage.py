"""A candidate that is really bad: everything about its file is right, but what it has learned is gone.

An adapter whose `lora_b` are zero is what an exporter writes that takes the checkpoint from before the first step: it loads, it is
signed, it adds nothing to its base. A classifier whose classes stand in another order is the same kind of accident with labels.
Neither shows in a file's form; only measuring finds it.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from noria.adapt import gguf_file
from noria.contracts.error import NoriaError
from noria.kit.atomic import write_whole
from noria.kit.ngram import decode, encode

SIDE = ".lora_b"


def damaged(source: Path, target: Path) -> str:
    """Write a damaged copy of a trained file; what was done to it, in a sentence. Raises `NoriaError` for a file of another kind."""
    if source.suffix == ".gguf":
        return _untrained(source, target)
    model = decode(source.read_bytes())
    turned = (*model.labels[1:], model.labels[0])
    write_whole(target, encode(replace(model, labels=turned)))
    return f"its {len(turned)} classes were moved by one place: every class has its neighbour's name"


def _untrained(source: Path, target: Path) -> str:
    file = gguf_file.read(source)
    emptied = [t for t in file.tensors.values() if t.name.endswith(SIDE)]
    if not emptied:
        raise NoriaError(f"{source} is no LoRA adapter: it has no tensor {SIDE}.", code="not_an_adapter")
    data = bytearray(source.read_bytes())
    for tensor in emptied:
        size = tensor.bytes or 0
        data[tensor.start : tensor.start + size] = bytes(size)
    write_whole(target, bytes(data))
    return f"its {len(emptied)} lora_b tensors are zero: what an export of an untrained checkpoint looks like"
