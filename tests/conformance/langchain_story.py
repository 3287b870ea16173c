"""What LangChain's chat models do alike, whatever protocol is under them: told once, asserted for each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from tests.conformance.vendor import CITIES


class Weather(BaseModel):
    """The weather somewhere."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


def gathered(stream: Any) -> tuple[int, Any]:
    """How many pieces with text there were, and their sum."""
    count, whole = 0, None
    for piece in stream:
        count += bool(piece.text)
        whole = piece if whole is None else whole + piece
    return count, whole


def calls_tools(model: Any, *, streamed: bool) -> None:
    """A model (`tools`) asks for the weather of two cities and makes a sentence of what it is told."""
    model = model.bind_tools([get_weather])
    said = gathered(model.stream("hello"))[1] if streamed else model.invoke("hello")
    assert [(c["name"], c["args"]) for c in said.tool_calls] == [("get_weather", {"city": city}) for city in CITIES]
    results = [{"role": "tool", "tool_call_id": c["id"], "content": f"21 in {c['args']['city']}"} for c in said.tool_calls]
    after = model.invoke([{"role": "user", "content": "hello"}, said, *results])
    assert after.text == "21 in Chengdu and 21 in Oslo"


def keeps_a_schema(model: Any, *, streamed: bool) -> None:
    """A model (`schema`) answers with a value of the type that is asked for."""
    model = model.with_structured_output(Weather, method="json_schema")
    parsed = list(model.stream("hello"))[-1] if streamed else model.invoke("hello")
    assert parsed == Weather(city="Chengdu", degrees=21)
