"""The help desk data set that `noria demo` runs on: its promises in README.md, checked."""

import json
import re
import zlib
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import noria

HELPDESK = Path(noria.__file__).parent / "demo" / "helpdesk"
LANGUAGES = ["en", "zh"]
HAN = re.compile(r"[\u4e00-\u9fff]")


@cache
def rows(lang: str) -> list[dict[str, str]]:
    text = (HELPDESK / f"utterances_{lang}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def intents() -> list[dict]:
    return json.loads((HELPDESK / "intents.json").read_text("utf-8"))["intents"]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def length(row: dict[str, str]) -> int:
    """Words in English, Han characters and words in Chinese."""
    return len(row["text"].split()) if row["lang"] == "en" else len(re.findall(r"[\u4e00-\u9fff]|[A-Za-z0-9-]+", row["text"]))


def test_intents_are_complete_and_come_in_two_waves() -> None:
    assert len({i["id"] for i in intents()}) == len(intents()) >= 26
    assert all(set(i["title"]) == set(i["definition"]) == set(LANGUAGES) for i in intents())
    waves = Counter(i["since"] for i in intents())
    assert set(waves) == {"v1", "v2"}
    assert waves["v1"] >= 16
    assert waves["v2"] >= 10


@pytest.mark.parametrize(("lang", "at_least", "per_intent"), [("en", 1500, 55), ("zh", 420, 15)])
def test_rows_are_well_formed_and_cover_every_intent(lang: str, at_least: int, per_intent: int) -> None:
    found = rows(lang)
    assert len(found) >= at_least
    assert all(list(r) == ["id", "text", "intent", "lang", "group"] and r["lang"] == lang for r in found)
    assert len({r["id"] for r in found}) == len(found)
    counts = Counter(r["intent"] for r in found)
    assert set(counts) == {i["id"] for i in intents()}
    assert min(counts.values()) >= per_intent


def test_no_group_spans_the_languages() -> None:
    assert not {r["group"] for r in rows("en")} & {r["group"] for r in rows("zh")}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_texts_are_clean(lang: str) -> None:
    for row in rows(lang):
        text = row["text"]
        assert text == " ".join(text.split()), row
        assert text.isprintable(), row
        assert "\ufffd" not in text, row
        assert bool(HAN.search(text)) == (lang == "zh"), row


@pytest.mark.parametrize(("lang", "shortest", "longest"), [("en", 3, 45), ("zh", 3, 45)])
def test_lengths_vary(lang: str, shortest: int, longest: int) -> None:
    lengths = np.array([length(r) for r in rows(lang)])
    assert shortest <= lengths.min()
    assert lengths.max() <= longest
    assert lengths.std() / lengths.mean() > 0.3
    assert Counter(lengths.tolist()).most_common(1)[0][1] < 0.2 * len(lengths)


def shingles(text: str, unit: str) -> set[str]:
    """Runs of three words or of three characters; a text shorter than three is one run."""
    parts = words(text) if unit == "word" else list(re.sub(r"\W", "", text.lower()))
    return {" ".join(parts[i : i + 3]) for i in range(max(1, len(parts) - 2))}


def closest(texts: list[str], unit: str) -> tuple[float, str, str]:
    """The most alike pair of texts by the Jaccard index of their shingles."""
    sets = [shingles(t, unit) for t in texts]
    in_texts = Counter(s for found in sets for s in found)
    column = {s: i for i, s in enumerate(s for s, n in in_texts.items() if n > 1)}  # the others are shared by no pair
    has = np.zeros((len(texts), len(column)), np.float32)
    for row, found in enumerate(sets):
        has[row, [column[s] for s in found if s in column]] = 1
    shared = has @ has.T
    size = np.array([len(found) for found in sets], np.float32)
    jaccard = shared / (size[:, None] + size[None, :] - shared)
    np.fill_diagonal(jaccard, 0)
    a, b = divmod(int(jaccard.argmax()), len(texts))
    return float(jaccard[a, b]), texts[a], texts[b]


@pytest.mark.parametrize(("lang", "unit"), [("en", "word"), ("en", "char"), ("zh", "char")])
def test_no_two_rows_are_near_duplicates(lang: str, unit: str) -> None:
    likeness, a, b = closest([r["text"] for r in rows(lang)], unit)
    assert likeness <= 0.8, (a, b)


def test_the_near_duplicate_check_sees_one() -> None:
    pair = ["where is my parcel, it has been ten whole days now", "where is my parcel, it has been ten whole days"]
    assert closest([*pair, "cancel the order"], "char")[0] > 0.8


@pytest.mark.parametrize("lang", LANGUAGES)
def test_rows_are_not_filled_in_templates(lang: str) -> None:
    masked = Counter(re.sub(r"\d+", "0", r["text"].lower()) for r in rows(lang))
    assert max(masked.values()) == 1, masked.most_common(3)
    if lang == "en":
        openings = Counter(tuple(r["text"].lower().split()[:4]) for r in rows(lang))
        assert openings.most_common(1)[0][1] < 0.01 * len(rows(lang)), openings.most_common(3)


def everything() -> list[tuple[str, str]]:
    files = [p for p in HELPDESK.rglob("*") if p.is_file()]
    return [(p.name, p.read_text("utf-8")) for p in files]


def test_addresses_and_numbers_belong_to_nobody() -> None:
    for name, text in everything():
        hosts = re.findall(r"[\w.+-]+@([\w.-]*\w)", text)
        assert all(h.endswith(".example") for h in hosts), (name, hosts)
        assert not re.findall(r"https?://|www\.", text), name
        phones = re.findall(r"(?<![\w-])\+?\(?\d{3}\)?[ -]\d{3,4}(?:[ -]\d+)*(?![\w-])", text)
        assert all(re.fullmatch(r"555-01\d\d", p) for p in phones), (name, phones)
        assert not re.search(r"(?<!\d)\d{10,}(?!\d)", text), name


def test_documents_are_short_titled_and_partly_bilingual() -> None:
    documents = {p.name: p.read_text("utf-8") for p in (HELPDESK / "documents").iterdir()}
    english = {n.removesuffix(".en.md"): t for n, t in documents.items() if n.endswith(".en.md")}
    chinese = {n.removesuffix(".zh.md"): t for n, t in documents.items() if n.endswith(".zh.md")}
    assert len(english) + len(chinese) == len(documents)
    assert len(english) >= 20
    assert len(chinese) >= 6
    assert set(chinese) <= set(english)
    assert all(t.startswith("# ") for t in documents.values())
    assert all(150 <= len(t.split()) <= 500 for t in english.values())
    assert all(150 <= len(HAN.findall(t)) <= 500 for t in chinese.values())


def test_both_languages_state_the_same_facts() -> None:
    """Every price, order pattern and batch code of a translation is in the English article."""
    fact = re.compile(r"€\d+(?:\.\d+)?|555-\d+|\bK\d\b|\d+(?:,\d+)? ?°C")
    for chinese in (HELPDESK / "documents").glob("*.zh.md"):
        english = chinese.with_name(chinese.name.replace(".zh.", ".en."))
        told, said = (Counter(set(fact.findall(p.read_text("utf-8")))) for p in (chinese, english))
        assert told == said, chinese.name


def test_the_data_card_gives_the_true_counts() -> None:
    card = (HELPDESK / "README.md").read_text("utf-8")
    for lang in LANGUAGES:
        groups = len({r["group"] for r in rows(lang)})
        assert f"| `utterances_{lang}.jsonl` | {len(rows(lang)):,} | {groups:,} |" in card


def terms(text: str, lang: str) -> Counter[str]:
    """Words and pairs of words; in Chinese runs of one to three characters."""
    if lang == "en":
        found = words(text)
        return Counter(found + [f"{a} {b}" for a, b in pairwise(found)])
    return Counter(text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1))


def baseline(lang: str) -> float:
    """Accuracy of a linear classifier (ridge on tf-idf) on the fifth of the groups that it has not seen."""
    held = [zlib.crc32(r["group"].encode()) % 5 == 0 for r in rows(lang)]
    train = [r for r, h in zip(rows(lang), held, strict=True) if not h]
    test = [r for r, h in zip(rows(lang), held, strict=True) if h]
    in_rows = Counter(t for r in train for t in terms(r["text"], lang))
    column = {t: i for i, t in enumerate(t for t, n in in_rows.items() if n > 1)}
    weight = np.array([np.log(len(train) / in_rows[t]) + 1 for t in column], np.float32)

    def matrix(found: list[dict[str, str]]) -> np.ndarray:
        x = np.zeros((len(found), len(column)), np.float32)
        for i, row in enumerate(found):
            for term, n in terms(row["text"], lang).items():
                if term in column:
                    x[i, column[term]] = 1 + np.log(n)
        x *= weight
        return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-9)

    labels = [i["id"] for i in intents()]
    x = matrix(train)
    y = np.array([[r["intent"] == label for label in labels] for r in train], np.float32)
    dual = np.linalg.solve(x @ x.T + np.eye(len(train), dtype=np.float32), y)
    said = (matrix(test) @ (x.T @ dual)).argmax(axis=1)
    return float(np.mean([labels[s] == r["intent"] for s, r in zip(said, test, strict=True)]))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_simple_classifier_finds_it_neither_trivial_nor_noise(lang: str) -> None:
    accuracy = baseline(lang)
    assert 0.60 <= accuracy <= 0.95, accuracy
