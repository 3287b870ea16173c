"""Adding an extension is one new file and no edit: written here, from the outside, in a temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.contracts.error import ConfigError, MissingDependency, NotFound
from noria.contracts.release import Endpoint
from noria.contracts.stage import Check, Options, Provider, Sample
from noria.kit import extension

CHECK = '''"""Pass only outputs that open with one of the given prefixes."""

from noria import Check, Finding, Options, Sample, Verdict


class StartsWith(Check):
    needs = frozenset({"output"})

    class Config(Options):
        prefixes: tuple[str, ...]

    def judge(self, sample: Sample) -> Verdict:
        passed = sample.output.casefold().startswith(tuple(p.casefold() for p in self.config.prefixes))
        return Verdict("starts_with", passed)
'''

PROVIDER = '''"""Answers with the prompt, reversed."""

import msgspec

from noria import Provider
from noria.contracts.exchange import ModelReply


class Reverse(Provider):
    def __init__(self, endpoint, secret, config):
        self.endpoint = endpoint

    async def send(self, call, sink):
        text = msgspec.json.decode(call.body["messages"])[-1]["content"][::-1]
        answer = {"id": "r", "model": self.endpoint.model, "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                  "finish_reason": "stop"}]}
        return ModelReply(200, msgspec.json.encode(answer))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for kind in ("checks", "providers", "engines"):
        (tmp_path / "extensions" / kind).mkdir(parents=True)
    return tmp_path / "extensions"


def test_a_check_in_one_file_is_found_loaded_and_used(folder: Path) -> None:
    (folder / "checks" / "starts_with.py").write_text(CHECK)
    cls = extension.load("checks", "starts_with", Check)
    check = cls(cls.Config(prefixes=("dear",)))
    assert check.id == "starts_with"
    assert check.judge(Sample(output="Dear Ann")).passed
    assert not check.judge(Sample(output="Hey")).passed
    assert "starts_with" in extension.ids("checks")


async def test_a_provider_in_one_file_answers_a_prompt(folder: Path) -> None:
    (folder / "providers" / "reverse.py").write_text(PROVIDER)
    from msgspec import Raw

    from noria.app.house import make_provider
    from noria.contracts.exchange import ModelCall

    provider = make_provider(Endpoint("r", "reverse", "m"), folder)
    call = ModelCall("x", "chat", False, {"messages": Raw(b'[{"role":"user","content":"abc"}]')})
    reply = await provider.send(call, lambda _: None)
    assert b'"cba"' in reply.body


def test_an_unknown_id_names_the_nearest(folder: Path) -> None:
    with pytest.raises(NotFound) as e:
        extension.load("checks", "pi", Check)
    assert "'pii'" in e.value.text


def test_a_missing_library_gives_the_pip_line(folder: Path) -> None:
    (folder / "checks" / "needy.py").write_text(
        CHECK.replace("class StartsWith", 'requires = ("no-such-library>=2",)\n\n\nclass StartsWith')
    )
    with pytest.raises(MissingDependency) as e:
        extension.load("checks", "needy", Check)
    assert "pip install 'no-such-library>=2'" in str(e.value)


def test_two_implementations_in_one_file_are_refused(folder: Path) -> None:
    (folder / "checks" / "twice.py").write_text(CHECK + "\n\nclass Other(StartsWith):\n    pass\n")
    with pytest.raises(ConfigError, match="exactly one"):
        extension.load("checks", "twice", Check)


@pytest.mark.parametrize("bad", ["../etc", "Pii", "a.b", ""])
def test_an_id_cannot_leave_its_folder(folder: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match="not an extension id"):
        extension.load("checks", bad, Check)


def test_options_refuse_unknown_keys() -> None:
    import msgspec

    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"x": 1}, Options)


def test_the_provider_base_has_no_tokenizer_by_default() -> None:
    assert Provider.count.__doc__
