"""A service behind a proxy, and commands where no service runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import NORIA

CONFIG = """
models:
  fake: {provider: scripted, model: fake}
apps:
  echo: {model: fake}
serve: {public_url: "https://llm.Example.org/noria"}
"""


def test_the_public_name_is_served_and_stands_in_links(serve: Callable[..., Any], caller: Any) -> None:
    service = serve(CONFIG)
    noria = caller(service)
    assert noria.chat("echo", headers={"host": "llm.example.org"}).status == 200
    noria.chat("echo", headers={"host": "llm.example.net"}).refuses(403, "foreign_host")
    while not any("Console" in line for line in service.lines):
        assert service.process.poll() is None
    printed = "\n".join(service.lines)
    assert "Clients reach it at https://llm.Example.org/noria/v1." in printed
    assert "https://llm.Example.org/noria/login?code=" in printed


def test_a_command_where_nothing_runs_obeys_the_file_in_its_folder(tmp_path: Path) -> None:
    stores = f"stores: {{records: 'sqlite:///{tmp_path}/mine.db', queue: 'sqlite:///{tmp_path}/mine.db'}}"
    (tmp_path / "noria.yaml").write_text(f"{CONFIG}{stores}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_")} | {"NORIA_HOME": str(tmp_path / "home")}

    def noria(*args: str) -> Any:
        done = subprocess.run([NORIA, *args], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    made = noria("keys", "create", "--name", "first", "--app", "echo", "--json")
    assert (tmp_path / "mine.db").exists()
    assert not (tmp_path / "home" / "records.db").exists()
    assert [k["id"] for k in noria("keys", "list", "--json")] == [made["id"]], "an app of the file is known"
