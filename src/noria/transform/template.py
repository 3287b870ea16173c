r"""The release's system prompt, first in the chat, with the caller's variables put in.

`{{ name }}` is a variable; `\{{` is two braces. Nothing is evaluated, and a value is inserted as it is
and never looked at again, so a variable cannot smuggle in another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.dialects.openai import read_messages

_MARK = re.compile(r"\\\{\{|\{\{[ \t]*([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*\}\}")


class Template:
    """Puts the prompt of the release before all messages; a system message of the caller's stays, second."""

    name = "template"
    behaviour = 1

    def __call__(self, x: Exchange, /) -> Exchange:
        """As `Inward`. Raises `RequestError` for a variable that the caller did not give."""
        prompt = x.release.prompt if x.release is not None else None
        if prompt is None or x.kind != "chat":
            return x
        messages = x.messages if x.messages is not None else read_messages(x.body["messages"])
        system = Message.of("system", render(prompt.text, x.variables))
        return msgspec.structs.replace(x, messages=(system, *messages), edited=True)


def variables_of(text: str) -> tuple[str, ...]:
    r"""Names of the variables of a prompt, in order of first use.

    >>> variables_of(r"{{a}} \{{b}} {{ c }}")
    ('a', 'c')
    """
    return tuple(dict.fromkeys(name for name in _MARK.findall(text) if name))


def render(text: str, variables: Mapping[str, str]) -> str:
    """The prompt with its variables put in. Raises `RequestError` that names what is missing."""

    def value(m: re.Match[str]) -> str:
        name = m.group(1)
        if name is None:
            return "{{"
        if name not in variables:
            raise _undefined(name, list(variables))
        return variables[name]

    return _MARK.sub(value, text)


def _undefined(name: str, given: list[str]) -> RequestError:
    close = get_close_matches(name, given, n=1)
    hint = f"Did you mean it by {close[0]!r}?" if close else f'Send it as "variables": {{"{name}": "…"}}.'
    return RequestError(
        f"The prompt needs the variable {name!r}, which the request does not give.",
        code="undefined_variable",
        param=f"variables.{name}",
        hint=hint,
    )
