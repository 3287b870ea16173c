"""The page: whole by itself, everything escaped, the same facts as the report."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from noria.contracts.evaluation import Report, Scored, Suite
from noria.evaluate.estimate import by_label, estimates
from noria.evaluate.report import page

EVIL = '<img src=x onerror="alert(1)">&"\''


def report(name: str = "good", wrong: int = 3, classes: int = 4) -> Report:
    items = []
    for n in range(40):
        label = f"class {n % classes}" if n % classes else EVIL
        said = "" if n < wrong else label
        items.append(
            Scored(f"{n:064x}", f"x{n}", said or EVIL, label, label, {"label": float(said == label)},
                   100.0 + n, 1500, said=said, error=EVIL if n == 0 else "")
        )  # fmt: skip
    return Report(
        "eval_1", Suite(EVIL, "d1:x", metrics=("label",)), f"r1:{name}", "desk", 1_760_000_000_000_000_000, 12.0,
        estimates(items, {"label": object()}), by_label(items), tuple(items), "q1:x", EVIL,
    )  # fmt: skip


class Reader(HTMLParser):
    """Notes tags, attributes, and that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_escaped_and_needs_nothing_else() -> None:
    for lang in ("en", "zh"):
        text = page([report(), report("bad", 20)], lang=lang)
        reader = Reader()
        reader.feed(text)
        assert reader.open == []
        assert not reader.tags & {"script", "img", "link", "iframe", "a", "object"}
        assert not any(name.startswith("on") or name in ("src", "href") for name in reader.names)
        assert "url(" not in text
        assert "prefers-color-scheme:dark" in text


def test_it_speaks_the_language_that_is_asked_for() -> None:
    assert '<html lang="zh-CN">' in page([report()], lang="zh")
    assert "得分" in page([report()], lang="zh")
    assert not re.search("[\u4e00-\u9fff]", page([report()], lang="en"))


def test_it_shows_the_reports_own_figures() -> None:
    made = report()
    text = page([made])
    e = made.estimates["label"]
    assert f"{e.value:.3f}" in text
    assert f"{e.low:.3f} … {e.high:.3f}" in text
    assert "$0.000060" in text, "40 requests at 1,500 nano-dollars"
    assert text.count("<svg") == 5
    assert text.count("none named: ") >= 3, "the confusion matrix has a place for answers that named nothing"


def test_a_report_without_classes_prices_or_misses_is_a_page_too() -> None:
    items = (Scored("0" * 64, "", "yes", "yes", "", {"exact": 1.0}, 5.0),)
    bare = Report("e", Suite("s", "d1:x"), "r1:x", "desk", 0, 1.0, estimates(items, {"exact": object()}), items=items)
    assert page([bare]).count("<svg") == 2


def test_many_classes_still_fit() -> None:
    text = page([report(classes=39)])
    assert "<svg" in text
