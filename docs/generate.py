"""Write the generated part of `docs/reference`: `python docs/generate.py`. A test fails where it is out of date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noria.settings import schema

FOLDER = Path(__file__).parent / "reference"

HEAD = """\
# Configuration

Generated from the settings by `docs/generate.py`; do not edit. For editors, the same as JSON schema:
[noria.schema.json](noria.schema.json).

`noria.yaml` is YAML 1.2 (`on` and `yes` are text) or JSON. Noria takes the file of `-c`, else of `NORIA_CONFIG`, else
`noria.yaml`, `noria.yml` or `noria.json` in the working directory; without any it serves the embedded model. Unknown keys
and keys that occur twice are errors. `noria validate` reports every mistake at once, each with its place:

```text
noria.yaml:6:23: apps.support.releases.a.model: The model 'smal' does not exist. Did you mean 'small'?
```

- **Durations** are seconds (`5`, `0.5`) or text with a unit (`500ms`, `5s`, `2m`, `1h`).
- **Sizes** are bytes or text with a unit (`16MB`); units are binary: 1 MB = 1,048,576 bytes.
- **Secrets** never stand in the file: write `env:NAME` or `file:PATH`.
- **Relative paths** start at the folder of the configuration file.

| environment variable | meaning |
|---|---|
| `NORIA_HOME` | where state lives; `.noria` in the working directory when unset |
| `NORIA_CONFIG` | the configuration file |
| `NORIA_LOG` | `debug`, `info` (when unset), `warning` or `error` |
"""


def schema_text() -> str:
    """The JSON schema as the file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def reference() -> str:
    """The page: one table a mapping, in the order of the schema."""
    return HEAD + "".join(_section("", schema(), []))


def _section(path: str, node: dict[str, Any], written: list[dict[str, Any]]) -> Iterator[str]:
    written.append(node)
    title = f"`{path}`" if path else "Top level"
    yield f"\n## {title}\n\n{node.get('description', '').strip()}\n\n| key | type | when absent | meaning |\n|---|---|---|---|\n"
    required = node.get("required", [])
    for key, value in node["properties"].items():
        absent = "**required**" if key in required else _default(value.get("default"))
        meaning = " ".join(value.get("description", "").split())
        yield f"| `{key}` | {_type(value)} | {absent} | {meaning} |\n"
    for key, value in node["properties"].items():
        for inner, below in _mappings(f"{path}.{key}".lstrip("."), value):
            if below not in written:
                yield from _section(inner, below, written)


def _mappings(path: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with keys of its own that a value may hold, with its path."""
    node = _resolved(node)
    if "properties" in node:
        yield path, node
    elif isinstance(node.get("additionalProperties"), dict):
        name = "<check>" if path.endswith("[]") else "<name>"
        yield from _mappings(f"{path}.{name}", node["additionalProperties"])
    elif "items" in node:
        yield from _mappings(f"{path}[]", node["items"])
    for choice in node.get("anyOf", []):
        yield from _mappings(path, choice)


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: dict[str, Any] = schema()["$defs"][node["$ref"].rpartition("/")[2]]
    return found


def _type(node: dict[str, Any]) -> str:
    node = _resolved(node)
    if "enum" in node:
        return " · ".join(f"`{v}`" for v in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(n) for n in node["anyOf"] if n.get("type") != "null"))
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict):
        return "mapping by name"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping"}
    return words[node["type"]] + _bounds(node)


def _bounds(node: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {node[key]}" for key, sign in signs.items() if key in node]
    return f" ({', '.join(found)})" if found else ""


def _default(value: Any) -> str:
    return "" if value in (None, "", {}, []) or isinstance(value, dict) else f"`{json.dumps(value, ensure_ascii=False)}`"


def main() -> None:
    """Write both files."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "noria.schema.json").write_text(schema_text(), "utf-8")
    (FOLDER / "configuration.md").write_text(reference(), "utf-8")


if __name__ == "__main__":
    main()
