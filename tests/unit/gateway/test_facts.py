"""What routing knows of a request."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.gateway.facts import OUTPUT_GUESS, Facts, estimate


def facts(*, messages: tuple[Message, ...] | None = None, kind: Any = "chat", **body: Any) -> Facts:
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()}
    return Facts(Exchange("x", "t", "s", "local", kind, "app", False, raw, 0, messages=messages))


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def test_tools_count_only_where_some_are_offered() -> None:
    assert facts(tools=[{"type": "function"}]).tools
    assert facts(functions=[{"name": "f"}]).tools
    assert not facts(tools=[]).tools
    assert not facts(tools=None).tools
    assert not facts().tools


def test_an_image_is_told_from_text_that_speaks_of_one() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    assert not facts().images
    assert facts_of([said([part])]).images
    assert not facts_of([said('what is an "image_url"?')]).images


def facts_of(messages: list[Any], **body: Any) -> Facts:
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in {"messages": messages, **body}.items()}
    return Facts(Exchange("x", "t", "s", "local", "chat", "app", False, raw, 0))


def test_a_schema_is_told_from_plain_json_mode() -> None:
    assert facts(response_format={"type": "json_schema", "json_schema": {}}).json_schema
    assert not facts(response_format={"type": "json_object"}).json_schema
    assert facts(response_format={"type": "json_schema"}, tools=[1]).needs() == ["tools", "json_schema"]


def test_the_text_is_the_last_user_message_as_the_stages_left_it() -> None:
    history = [said("first"), said("no", "assistant"), said([{"type": "text", "text": "second"}]), said("t", "tool")]
    assert facts_of(history).text == "second"
    raw = {"messages": msgspec.Raw(msgspec.json.encode(history))}
    edited = Exchange("x", "t", "s", "l", "chat", "a", False, raw, 0, messages=(Message.of("user", "masked"),))
    assert Facts(edited).text == "masked"
    assert facts(kind="completion", prompt="once upon").text == "once upon"


def test_the_output_is_the_requests_bound_or_a_guess() -> None:
    assert facts(max_tokens=7).output() == 7
    assert facts(max_completion_tokens=9, max_tokens=7).output() == 9
    assert facts(max_tokens=100_000).output() == OUTPUT_GUESS
    assert facts().output() == OUTPUT_GUESS


def test_an_inlined_image_is_not_counted_as_text() -> None:
    small = facts_of([said([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}])])
    assert small.tokens < 50


def test_escaped_and_plain_chinese_count_alike() -> None:
    plain = '"今天天气怎么样"'.encode()
    escaped = b'"' + b"".join(b"\\u%04x" % ord(c) for c in "今天天气怎么样") + b'"'
    assert estimate(plain) == estimate(escaped)
