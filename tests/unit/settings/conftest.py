"""A catalog of fake extensions, so that these tests hold whatever is shipped."""

import pytest

from noria.contracts.error import ConfigError, MissingDependency
from noria.contracts.stage import Check, Options, Provider
from noria.contracts.verdict import Verdict
from noria.settings import Catalog


class _Plain(Check):
    def judge(self, sample):
        return Verdict("plain", True)


class _Grounded(_Plain):
    needs = frozenset({"output", "context"})
    either = False


class _Pii(_Plain):
    class Config(Options):
        kinds: list[str] = []
        threshold: float = 0.5


class _Denylist(_Plain):
    class Config(Options):
        terms: list[str] = []
        file: str = ""

        def __post_init__(self):
            if not self.terms and not self.file:
                raise ConfigError("The denylist has neither terms nor a file.")


class _Speaks(Provider):
    class Config(Options):
        threads: int = 1

    async def send(self, call, sink):
        raise NotImplementedError


CHECKS = {"secrets": _Plain, "pii": _Pii, "denylist": _Denylist, "injection": _Plain, "grounded": _Grounded, "toxicity": _Plain}


def _check(name):
    if name == "judge":
        raise MissingDependency("checks/judge needs judging>=2.", hint="Install it: pip install 'judging>=2'")
    return CHECKS[name]


@pytest.fixture
def catalog():
    return Catalog(
        providers=["local", "scripted", "anthropic", "openai_compatible"],
        vendors={"openai": "https://api.example/v1", "azure": ""},
        checks=[*CHECKS, "judge"],
        engines=["memory", "sqlite", "duckdb", "files", "process", "postgres"],
        check=_check,
        provider=lambda name: _Speaks,
    )
