"""Prompts out of files, in the shapes that people have."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from noria.contracts.error import ConfigError
from noria.data.collect import Prompt, messages_of, read_prompts


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": user("a")}, user("a")),
        ({"prompt": "a"}, user("a")),
        ({"question": "a", "answer": "b"}, user("a")),
        ({"user_query": "a"}, user("a")),
        ({"turns": ["a", "b"]}, user("a")),
        ({"turns": [{"content": "a"}]}, user("a")),
        ({"instruction": "do", "input": "this"}, user("do\n\nthis")),
        ({"instruction": "do", "input": " "}, user("do")),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, user("a")),
        (
            {
                "conversation": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                    {"from": "human", "value": "c"},
                ]
            },
            [{"role": "system", "content": "s"}, *user("a"), {"role": "assistant", "content": "b"}, *user("c")],
        ),
        ({"dialog": [{"role": "User", "content": "a"}]}, [{"role": "user", "content": "a"}]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"}]},
            [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"}],
        ),
    ],
)
def test_a_known_shape_becomes_messages(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert messages_of(row) == messages


def test_a_conversation_ends_at_the_last_question() -> None:
    row = {"messages": [*user("a"), {"role": "assistant", "content": "b"}]}
    assert messages_of(row) == user("a")


def test_tool_traffic_without_its_calls_is_left_out() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "observation", "value": "t"},
            {"from": "human", "value": "b"},
        ]
    }
    assert [m["content"] for m in messages_of(row)] == ["a", "b"]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"label": 1},
        {"prompt": " "},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "b"}]},
        {"messages": ["x", 3]},
        {"turns": []},
        {"turns": [["a"]]},
        {"turns": [7, "b"]},
        {"turns": [{"text": "a"}]},
        {"turns": [{"content": None}]},
    ],
)
def test_a_row_without_a_prompt_has_none(row: dict[str, Any]) -> None:
    assert messages_of(row) == []


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "id": 7}\n\n"b"\n{"prompt": "世界", "idx": "x"}')
    assert list(read_prompts(path)) == [Prompt(1, user("a"), "7"), Prompt(3, user("b")), Prompt(4, user("世界"), "x")]


def test_gzip_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    assert list(read_prompts(path)) == [Prompt(1, user("a"))]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "not a JSON value"),
        ("[1]", "object or string"),
        ("7", "object or string"),
        ('{"label": 1}', "Keys: label"),
        ('{"turns": [["a"]]}', "Keys: turns"),
        ('"\\ud800"', "not a JSON value"),
    ],
)
def test_a_bad_line_is_named_with_its_place(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + line + "\n")
    prompts = read_prompts(path)
    next(prompts)
    with pytest.raises(ConfigError, match=says) as e:
        next(prompts)
    assert e.value.where == f"{path}:2"


def test_bytes_that_are_no_text_are_named_too(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(ConfigError, match="not a JSON value"):
        list(read_prompts(path))


def test_an_absent_or_cut_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_prompts(tmp_path / "none.jsonl"))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-12])
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_prompts(cut))
    cut.write_bytes(b"no gzip at all")
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_prompts(cut))


def test_a_damaged_gzip_names_the_line_after_which_it_can_be_read_no_further(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"prompt": "%d %d"}\n' % (i, i * 7919 % 1009) for i in range(20_000)))
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 64 + whole[len(whole) // 2 + 64 :])
    read: list[Prompt] = []
    with pytest.raises(ConfigError, match="cannot be read") as e:
        read.extend(read_prompts(path, skip=lambda line, why: read.append(Prompt(line, []))))
    line = int(e.value.where.removeprefix(f"{path}:"))
    assert 1 < line <= 20_000
