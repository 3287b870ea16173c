"""The providers of the cost fixtures on loopback: each answers the case and the shape that the prompt names, in its own wire."""

from __future__ import annotations

import asyncio
import json
import re

from tests.golden.fixtures import CASES, WIRES
from tests.loopback import begin, put

LONGEST = 5000
_NAMED = re.compile(rb"case=<([^|]+)\|([^>]+)>")


def prompt(case_id: str, shape: str, tokens: int) -> str:
    """A prompt of about so many tokens (of `LONGEST` at most) that says which answer it wants."""
    return f"case=<{case_id}|{shape}>" + " wheel" * max(0, min(tokens, LONGEST) - 12)


class Providers:
    """`port` is set by whoever serves; `asked` counts the requests by path."""

    def __init__(self) -> None:
        self.port = 0
        self.paths: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = int(re.search(r"content-length: (\d+)", head.lower())[1])  # type: ignore[index]  # every call has one
                body = await reader.readexactly(length)
                self.paths.add(head.split()[1].partition("?")[0])
                named = _NAMED.search(body)
                assert named is not None, body[:300]
                await self._answer(reader, writer, named[1].decode(), named[2].decode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, shape: str) -> None:
        case = CASES[name]
        wire = WIRES[case.kind]
        if shape == "whole":
            data = json.dumps(wire.whole(case)).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
            )
            return
        frames, early, late = wire.frames(case)
        begin(writer)
        if shape == "stream":
            for frame in frames:
                put(writer, frame)
            writer.write(b"0\r\n\r\n")
            return
        put(writer, b"".join(frames[: early if shape == "left before" else late]))  # at once: what is seen of it is all seen
        await reader.read(1)
        raise ConnectionResetError
