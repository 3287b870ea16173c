"""Datasets through the command line against a running service: from files and traffic to a version, and out again."""

from __future__ import annotations

import json
import sqlite3

import duckdb
import pytest

CONFIG = {
    "models": {"fake": {"provider": "scripted", "model": "fake-1"}},
    "prompts": {"kind": {"text": "Be kind."}},
    "apps": {"help": {"model": "fake", "prompt": "kind"}},
}
TOPICS = {"returns": "怎么退货", "delivery": "我的快递到哪里了", "invoice": "please send me the invoice of order"}


@pytest.fixture(scope="module")
def noria(serve_once, caller):
    return caller(serve_once(json.dumps(CONFIG)))


@pytest.fixture(scope="module")
def cli(noria):
    return noria.service


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rows = [{"text": f"{text}{'，' * (n % 2)}{n * 7919}", "label": label} for label, text in TOPICS.items() for n in range(40)]
    rows += [
        {"text": "PLEASE send me  the invoice of order0", "label": "invoice"},
        {"text": "write to ann@example.com", "label": "x"},
    ]
    path = tmp_path_factory.mktemp("data") / "help.jsonl"
    lines = [json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_text("\n".join([*lines[:5], "{broken", *lines[5:]]) + "\n")
    return path


@pytest.fixture(scope="module")
def imported(cli, file):
    return cli.json("data", "import", "help", str(file))


def test_from_a_file_to_a_split_version_and_out_again(cli, file, tmp_path):
    imported = cli.json("data", "import", "story", str(file))  # a dataset of its own: other tests make versions of `help`
    first = imported["version"]
    assert (first["rows"], first["splits"], imported["rejected"]) == (122, {"train": 122}, {"import.not_json": 1})
    (bad,) = cli.json("data", "rejected", "story")
    assert (bad["rule"], bad["detail"].split(": ")[0]) == ("not_json", "help.jsonl:6")

    again = cli.json("data", "import", "story", str(file))
    assert (again["version"]["id"], again["new"]) == (first["id"], False)
    lines = file.read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(reversed(lines)))
    assert cli.json("data", "import", "elsewhere", str(tmp_path / "other.jsonl"))["version"]["id"] == first["id"]

    assert cli.json("data", "dedup", "story", "--exact")["rejected"] == {"dedup.exact": 1}
    split = cli.json("data", "version", "story", "--split", "train=0.75,test=0.25", "--stratify")["version"]
    assert split["splits"] == {"test": 30, "train": 91}
    assert cli.json("data", "verify", "story")["passed"]
    assert cli.json("data", "leak", "story/train", "story/test", "--exact")["passed"]

    diff = cli.json("data", "diff", f"story@{first['id']}", "story")
    assert (len(diff["added"]), len(diff["removed"]), len(diff["moved"])) == (0, 1, 30)
    out = tmp_path / "help.parquet"
    assert cli.json("data", "export", "story/test", str(out)) == {"file": str(out), "rows": 30}
    assert duckdb.sql(f"SELECT DISTINCT split FROM '{out}'").fetchall() == [("test",)]
    assert cli.json("data", "list", "story")[0]["id"] == split["id"]
    assert {v["name"] for v in cli.json("data", "list")} >= {"story", "elsewhere"}


def test_versions_are_compared_over_http_with_what_their_rows_say(cli, noria, file):
    first = cli.json("data", "import", "compared", str(file))["version"]
    cli.json("data", "dedup", "compared", "--exact")
    cli.json("data", "label", "compared", "--rule", "refund=退货", "--overwrite")
    last = cli.json("data", "version", "compared", "--split", "train=0.75,test=0.25")["version"]
    found = noria.api("GET", f"/api/datasets/compared/latest/diff?before={first['id'][:12]}&limit=7").json
    assert (found["before"]["id"], found["after"]["id"]) == (first["id"], last["id"])
    counts = found["counts"]
    assert (sum(counts["added"].values()), counts["removed"], counts["relabelled"]) == (40, {"train": 41}, 40)
    assert counts["moved"] == last["splits"]["test"] - counts["added"].get("test", 0)
    assert len(found["added"]) == len(found["removed"]) == len(found["moved"]) == len(found["relabelled"]) == 7
    change = found["relabelled"][0]
    assert (change["before"], change["after"], change["content"]["label"]) == ("returns", "refund", "refund")
    assert "退货" in change["content"]["messages"][0]["content"]
    rules = noria.api("GET", "/api/datasets/compared/latest/rejections/rules").json
    assert sorted((r["stage"], r["rule"], r["rows"]) for r in rules) == [("dedup", "exact", 1), ("import", "not_json", 1)]
    noria.api("GET", "/api/datasets/compared/latest/diff?before=d1:ffffffff").refuses(404, "version_not_found")


def test_personal_data_is_masked_before_it_is_stored(cli, noria, imported):
    page = noria.api("GET", f"/api/datasets/help/{imported['version']['id']}/rows?limit=2000").json
    texts = [r["row"]["messages"][0]["content"] for r in page["rows"]]
    assert "write to [EMAIL]" in texts
    assert not any("ann@example.com" in t for t in texts)


def test_labels_make_another_version_and_show_in_the_difference(cli, imported, tmp_path):
    before = imported["version"]["id"]
    rows = cli.json("data", "show", before, "--rows", "3")["rows"]
    (tmp_path / "labels.csv").write_text("row,label\n" + "".join(f"{r['id'][:20]},新标签\n" for r in rows))
    made = cli.json("data", "label", before, "--file", str(tmp_path / "labels.csv"))
    assert made["changed"] == 3
    diff = cli.json("data", "diff", before, made["version"]["id"])
    assert {r["after"] for r in diff["relabelled"]} == {"新标签"}
    assert len(diff["relabelled"]) == len(diff["added"]) == len(diff["removed"]) == 3


def test_a_leak_is_found_named_and_fails(cli, tmp_path):
    long = "could you please tell me how long a parcel to the north of the country takes these days"
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": long}))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": long + " then"}) + "\n" + json.dumps({"text": "something else"}))
    cli.cli("data", "import", "learned", str(tmp_path / "train.jsonl"))
    cli.cli("data", "import", "judged", str(tmp_path / "test.jsonl"))
    done = cli.cli("data", "leak", "learned", "judged", "--json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["passed"], found["near"], found["share"]) == (False, 1, 0.5)


def test_traffic_becomes_rows_with_provenance_and_corrections(cli, noria):
    asked = [noria.chat("help", f"退货问题 {n}，电话 13812345678", user=f"user-{n}") for n in range(3)]
    for answer in asked:
        noria.trace(answer.id)
    given = noria.api("POST", "/api/feedback", {"exchange_id": asked[0].id, "correction": "请点“退货”。"})
    assert given.status in (200, 201, 202), given.body
    made = cli.json("data", "harvest", "traffic", "--app", "help")
    assert made["version"]["rows"] == 3
    rows = cli.json("data", "show", "traffic")["rows"]
    by = {r["row"]["source"]["ref"]: r["row"] for r in rows}
    assert by.keys() == {a.id for a in asked}
    assert {tuple(m["role"] for m in r["messages"]) for r in by.values()} == {("user",)}, (
        "the prompt is the release's, not the row's"
    )
    assert all("[PHONE]" in r["messages"][-1]["content"] and r["subject"] for r in by.values())
    corrected, said = by[asked[0].id], by[asked[1].id]
    assert (corrected["answer"], corrected["source"]["origin"], corrected["source"]["release"]) == (
        "请点“退货”。",
        "feedback",
        "",
    )
    assert (said["source"]["origin"], said["source"]["release"]) == ("trace", noria.row(asked[1].id)["release"])
    only = cli.json("data", "harvest", "judged-traffic", "--app", "help", "--feedback")
    assert only["version"]["rows"] == 1
    held = noria.api("GET", f"/api/datasets?subject={said['subject']}").json["versions"]
    assert [v["name"] for v in held] == ["traffic"]


def test_a_damaged_row_fails_the_verification_by_name(cli, noria, file):
    cli.cli("data", "import", "damaged", str(file))
    page = noria.api("GET", "/api/datasets/damaged/latest/rows?limit=1").json
    row = page["rows"][0]["id"]
    with sqlite3.connect(cli.home / "datasets.db", timeout=10) as db:
        (data,) = db.execute("SELECT data FROM dataset_rows WHERE id = ?", (bytes.fromhex(row),)).fetchone()
        db.execute("UPDATE dataset_rows SET data = ? WHERE id = ?", (data[:-1] + bytes([data[-1] ^ 1]), bytes.fromhex(row)))
    try:
        done = cli.cli("data", "verify", "damaged", "--json", check=False)
        assert done.returncode == 1
        assert [bad[0] for bad in json.loads(done.stdout)["bad"]] == [row]
        assert cli.cli("data", "export", "damaged", str(cli.home / "no.jsonl"), check=False).returncode == 1
        assert not (cli.home / "no.jsonl").exists()
    finally:
        with sqlite3.connect(cli.home / "datasets.db", timeout=10) as db:
            db.execute("UPDATE dataset_rows SET data = ? WHERE id = ?", (data, bytes.fromhex(row)))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("show", "nothing"), "does not exist"),
        (("show", "help@d1:ffffffffff"), "no version"),
        (("show", "help/dev"), "no split"),
        (("version", "help", "--split", "train=0.5"), "add up"),
        (("import", "Bad Name", "FILE"), "cannot be a dataset's name"),
        (("import", "x", "FILE", "--strict"), "help.jsonl:6"),
        (("import", "x", "FILE", "--label", "lable"), "'lable'"),
        (("leak", "help", "help"), "same rows"),
        (("dedup", "help", "--near", "7"), "between 0.3 and 1"),
    ],
    ids=" ".join,
)
def test_mistakes_are_told(cli, imported, file, args, words):
    done = cli.cli("data", *(str(file) if a == "FILE" else a for a in args), check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/api/rows", b'{"messages": [1]}', "invalid_line"),
        ("/api/rows", b"[]\n", "invalid_line"),
        ("/api/datasets/x", b"", "empty_body"),
        ("/api/datasets/x", b'{"recipe": {}, "extra": 1}', "invalid_line"),
        ("/api/datasets/x", b'{}\n["%s", "a"]\n["%s", "a"]' % (b"1" * 64, b"0" * 64), "members_unsorted"),
        ("/api/datasets/x", b'{}\n["%s", "a"]' % (b"1" * 64), "rows_missing"),
        ("/api/datasets/x", b'{}\n["abc", "a"]', "invalid_row_id"),
        ("/api/rows/read", b'{"ids": ["x"]}', None),
        ("/api/rows", b'{"messages": [{"role": "user", "content": "x"}], "subject": "Ann Smith"}', "invalid_subject"),
    ],
)
def test_the_api_refuses_what_cannot_be_meant(noria, path, body, code):
    answer = noria.api("POST", path, body)
    assert 400 <= answer.status < 500, answer.body
    if code:
        assert answer.json["error"]["code"] == code


@pytest.mark.parametrize(
    "path", ["/%00", "/a%00b/latest", "/help/d1:%00", "/help/latest/rows?after=zz", "?subject=%00", "/help?limt=1"]
)
def test_odd_paths_are_refused_and_break_nothing(noria, imported, path):
    answer = noria.api("GET", f"/api/datasets{path}")
    assert 400 <= answer.status < 500, answer.body


def test_datasets_need_the_admin_token(noria):
    for path in ("/api/datasets", "/api/exchanges", "/api/rows/read"):
        assert noria.send("GET", path).status == 401


def test_a_large_body_is_read_as_it_comes(noria):
    rows = b"\n".join(json.dumps({"messages": [{"role": "user", "content": f"row {n}"}]}).encode() for n in range(3000))
    answer = noria.api("POST", "/api/rows", rows)
    assert answer.status == 200, answer.body
    assert (len(set(answer.json["ids"])), answer.json["new"]) == (3000, 3000)
    assert noria.api("POST", "/api/rows", rows).json == {"ids": answer.json["ids"], "new": 0}
