"""`data.reading`: rows of files, and what is wrong with the others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import duckdb
import pytest

from noria.contracts.error import ConfigError
from noria.data.reading import Bad, Fields, Offered, file_digest, labels_of, read_file

PLAIN = Fields()


def read(path: Path, fields: Fields = PLAIN, **more) -> list[Offered | Bad]:
    return list(read_file(path, fields, subject=str, **more))


def lines(path: Path, *rows) -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("line", "prompt", "answer", "label"),
    [
        ({"text": "怎么退货", "label": "returns"}, "怎么退货", "", "returns"),
        ({"prompt": "q", "answer": "a"}, "q", "a", ""),
        ({"utterance": "q", "intent": "i"}, "q", "", "i"),
        ({"instruction": "do", "input": "this", "output": "done"}, "do\n\nthis", "done", ""),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q", "a", ""),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "a", ""),
        ({"messages": [{"role": "user", "content": "q"}], "label": 3}, "q", "", "3"),
        ({"text": "q", "answer": True}, "q", "true", ""),
        ("just a string", "just a string", "", ""),
    ],
    ids=str,
)
def test_the_shapes_that_people_have(tmp_path, line, prompt, answer, label):
    (found,) = read(lines(tmp_path / "f.jsonl", json.dumps(line) if isinstance(line, str) else line))
    assert isinstance(found, Offered), found
    assert (found.row.messages[-1]["content"], found.row.answer, found.row.label) == (prompt, answer, label)


def test_a_row_says_where_it_comes_from(tmp_path):
    path = lines(tmp_path / "f.jsonl", {"text": "a"}, "", {"text": "b", "split": "test"})
    one, two = read(path, lang="en")
    assert [o.row.source.ref for o in (one, two)] == [f"{file_digest(path)}:1", f"{file_digest(path)}:3"]
    assert (one.split, two.split, one.row.lang) == ("", "test", "en")


def test_columns_under_other_names(tmp_path):
    path = lines(
        tmp_path / "f.jsonl", {"q": "Q", "a": "A", "c": "C", "doc": "D", "who": "ann", "part": "dev", "domain": "bank"}
    )
    fields = Fields("q", "a", "c", "", "doc", "part", "who", ("domain",))
    (found,) = read(path, fields)
    row = found.row
    assert (row.messages[0]["content"], row.answer, row.label, row.group, row.subject) == ("Q", "A", "C", "D", "ann")
    assert (found.split, row.tags) == ("dev", {"domain": "bank"})


def test_a_column_that_no_line_has_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="'lable'") as e:
        read(lines(tmp_path / "f.jsonl", {"text": "a", "label": "b"}), Fields(label="lable"))
    assert "label" in e.value.text


def test_every_bad_line_is_told_with_its_number_and_reason(tmp_path):
    path = lines(
        tmp_path / "f.jsonl", {"text": "a"}, "{not json", [1], {"nothing": 1}, {"text": "  "}, {"text": "b", "label": "x" * 600}
    )
    found = read(path)
    assert isinstance(found[0], Offered)
    assert [(b.rule, b.detail.split(": ")[0]) for b in found[1:]] == [
        ("not_json", "f.jsonl:2"),
        ("no_object", "f.jsonl:3"),
        ("no_prompt", "f.jsonl:4"),
        ("no_prompt", "f.jsonl:5"),
        ("label_too_long", "f.jsonl:6"),
    ]
    assert [b.ref for b in found[1:]] == [f"{file_digest(path)}:{n}" for n in (2, 3, 4, 5, 6)]


def test_text_that_is_no_unicode_is_a_bad_line_in_json_and_an_error_in_csv(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "ok"}\n')
    bad, good = read(tmp_path / "f.jsonl")
    assert isinstance(bad, Bad)
    assert good.row.messages[0]["content"] == "ok"
    (tmp_path / "f.csv").write_bytes(b"text\n\xff\n")
    with pytest.raises(ConfigError, match=r"f\.csv"):
        read(tmp_path / "f.csv")


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.tsv"])
def test_csv_with_quotes_and_line_ends_inside(tmp_path, name):
    tab = "\t" if "tsv" in name else ","
    text = f'text{tab}label\n"a ""b""\nc"{tab}x\nonly one\n中文{tab}y\n'
    data = text.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    one, bad, two = read(tmp_path / name)
    assert (one.row.messages[0]["content"], one.row.label) == ('a "b"\nc', "x")
    assert (bad.rule, bad.detail) == ("columns", f"{name}:4: 1 columns where the head has 2")
    assert two.row.messages[0]["content"] == "中文"


def test_parquet(tmp_path):
    path = tmp_path / "f.parquet"
    duckdb.sql("SELECT * FROM (VALUES ('你好', 'a', 1), (NULL, 'b', 2)) t(text, label, n)").write_parquet(str(path))
    one, bad = read(path)
    assert (one.row.messages[0]["content"], one.row.label, one.row.source.ref) == ("你好", "a", f"{file_digest(path)}:1")
    assert bad.rule == "no_prompt"


@pytest.mark.parametrize("name", ["f.txt", "missing.jsonl", "broken.jsonl.gz", "broken.parquet"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name):
    if name != "missing.jsonl":
        (tmp_path / name).write_bytes(gzip.compress(b"x" * 999)[:20] if name.endswith("gz") else b"no")
    with pytest.raises(ConfigError, match=name.split(".")[0]):
        read(tmp_path / name)


def test_labels_of_a_file(tmp_path):
    assert labels_of(lines(tmp_path / "a.jsonl", {"row": "ab", "label": "x"}, {"id": "cd", "label": ""})) == {
        "ab": "x",
        "cd": "",
    }
    with pytest.raises(ConfigError, match="two labels"):
        labels_of(lines(tmp_path / "b.jsonl", {"row": "ab", "label": "x"}, {"row": "ab", "label": "y"}))
    with pytest.raises(ConfigError, match="needed"):
        labels_of(lines(tmp_path / "c.jsonl", {"label": "x"}))
