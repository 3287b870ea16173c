"""The house itself: layers, sizes, one extension mechanism, cheap import."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "noria"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_MODULE, MAX_FUNCTION, MAX_POSITIONAL = 600, 60, 5
MAY_CATCH_ALL = {"contracts/error.py", "kit/step.py"}
PACKAGES = [
    "journeys",
    "transform",
    "ground",
    "guard",
    "gateway",
    "providers",
    "data",
    "adapt",
    "evaluate",
    "release",
    "observe",
    "checks",
    "govern",
    "engines",
    "dialects",
    "kit",
    "contracts",
    "api",
    "web",
    "cli",
    "app",
    "settings",
    "demo",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (n for n in ast.walk(tree) if isinstance(n, Function))


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_hard_limits_hold(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_MODULE, "split it by noun"
    for function in functions(ast.parse(text)):
        where = f"{name_of(path)}:{function.lineno} {function.name}"
        assert lines_of(function) <= MAX_FUNCTION, where
        positional = [a.arg for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in ("self", "cls")]
        assert len(positional) <= MAX_POSITIONAL, where


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_boundary_catches_everything(path: Path) -> None:
    if name_of(path) in MAY_CATCH_ALL:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and not ends_in_raise(node):
            named = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
            assert not named & {"Exception", "BaseException", "everything"}, f"{name_of(path)}:{node.lineno}"


def ends_in_raise(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_every_first_level_package_says_what_belongs_there() -> None:
    for name in PACKAGES:
        doc = ast.get_docstring(ast.parse((SOURCE / name / "__init__.py").read_text()))
        assert doc, f"noria.{name} has no docstring"
        assert len(doc) > 60, f"noria.{name} says too little"
    assert {p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists()} == set(PACKAGES)


def test_every_ignore_is_explained() -> None:
    for path in MODULES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for mark in ("# noqa", "# type: ignore"):
                if mark in line and not line.lstrip().startswith(('"', "'")):
                    reason = line.split(mark, 1)[1].partition("]")[2] if mark == "# type: ignore" else line.split(mark, 1)[1]
                    assert len(reason.split()) >= 3, f"{name_of(path)}:{number} ignores without a reason"


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_importing_noria_loads_nothing_heavy() -> None:
    heavy = ["torch", "fastapi", "pydantic", "duckdb", "psycopg", "numpy", "uvicorn", "rich", "click"]
    code = f"import noria, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_service_starts_without_what_only_its_jobs_need() -> None:
    code = "import noria.app.stores, noria.api.manage, sys; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_lists_its_commands_without_importing_them() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from noria.cli.main import cli;"
        "r = CliRunner().invoke(cli, ['--help']); assert 'replay' in r.output, r.output;"
        "print([m for m in ('rich', 'pydantic', 'msgspec.yaml', 'noria.cli.replay', 'noria.app') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sizes_are_reported(record_property: pytest.RecordProperty) -> None:
    modules = sorted(len(p.read_text().splitlines()) for p in MODULES)
    lengths = sorted(lines_of(f) for p in MODULES for f in functions(ast.parse(p.read_text())))
    report = {
        "modules": len(modules),
        "module_median": statistics.median(modules),
        "module_p90": modules[int(len(modules) * 0.9)],
        "function_median": statistics.median(lengths),
        "function_p90": lengths[int(len(lengths) * 0.9)],
    }
    for key, value in report.items():
        record_property(key, value)
    print(report)
