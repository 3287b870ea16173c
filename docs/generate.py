"""Write the generated part of `docs/reference`: `python docs/generate.py`; with `--check` only say what is out of date.

What can be read from the code is read from it: settings, commands, errors, HTTP paths, metrics, extensions, modules.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import click
import msgspec

from noria.settings import schema

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "reference"
SOURCE = ROOT / "src" / "noria"
NOTE = "Generated from {source} by `docs/generate.py`; do not edit."

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


# -- the command line ---------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options."""
    from noria.cli.main import HIDDEN, cli

    head = f"""# Command line

{NOTE.format(source="the commands")}

Commands find the service of `NORIA_HOME` by its socket; where none runs, those that need the stores open them for as
long as they take. Exit codes: 0 done, 1 a failed verdict or operation, 2 wrong usage or configuration, 130 interrupted.
"""
    root = click.Context(cli, info_name="noria")
    found = [(n, cli.get_command(root, n)) for n in cli.list_commands(root) if n not in HIDDEN]
    return head + "".join(_command(f"noria {name}", command) for name, command in found if command is not None)


def _command(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    text = f"\n## `{path}`\n\n{' '.join((command.help or '').split())}\n\n```text\n{usage}\n```\n"
    rows = [_option(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if rows:
        text += "\n| option | meaning |\n|---|---|\n" + "".join(rows)
    if isinstance(command, click.Group):
        text += "".join(_command(f"{path} {name}", sub) for name, sub in command.commands.items())
    return text


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{o}`" for o in option.opts)
    kind = "" if option.is_flag else _kind(option)
    words = [option.help or "", "Required." if option.required else ""]
    if option.show_default and option.default is not None:
        words.append(f"Default: {option.default}.")
    return f"| {names}{kind} | {_cell(' '.join(w for w in words if w))} |\n"


def _kind(option: click.Option) -> str:
    kind = option.type
    if isinstance(kind, click.Choice):
        return " " + " · ".join(f"`{c}`" for c in kind.choices)
    return f" {kind.name.removesuffix(' range').upper()}"


# -- errors -------------------------------------------------------------------------------------------------


def errors() -> str:
    """The tree, what each kind looks like on the wire, and every code that the source raises."""
    from noria.contracts import error as tree

    document = (tree.__doc__ or "").split("\n\n")[1]
    text = f"""# Errors

{NOTE.format(source="`contracts/error.py` and the places that raise")} Over HTTP an error is OpenAI's body, always with all four keys:
`{{"error": {{"message": …, "type": …, "param": …, "code": …}}}}`. `message` says what is wrong and what to do, `code` is
stable. Inside a stream that has begun the same body is the last frame before the end. An error that no retry can mend, or that has been
retried already, carries `x-should-retry: false`; one that will pass carries `retry-after` and `retry-after-ms`.

```text
{document}
```

## Kinds

| class | status | `type` | meaning |
|---|---|---|---|
"""
    kinds = [v for v in vars(tree).values() if isinstance(v, type) and issubclass(v, tree.NoriaError)]
    for kind in kinds:
        text += f"| `{kind.__name__}` | {kind.status} | `{kind.type}` | {_cell(_first(kind.__doc__))} |\n"
    text += (
        "\nA `StoreError` that is not a `Conflict` reaches HTTP callers as 503 `service_unavailable`. A client error of the\n"
        "endpoint (400, 404, 405, 413, 415, 422) passes through with its own status and body.\n\n## Codes\n\n"
        "`…` stands for what the message fills in.\n\n| code | raised as | message | where |\n|---|---|---|---|\n"
    )
    for code, kind, message, where in sorted(set(_raised())):
        text += f"| `{code}` | `{kind}` | {_cell(message)} | `{where}` |\n"
    text += "\n## Refused by the HTTP layer\n\n| status | code | message |\n|---|---|---|\n"
    return text + "".join(f"| {s} | `{c}` | {_cell(m)} |\n" for s, c, m in sorted(set(_refusals())))


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _calls(folder: Path) -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Call):
                yield path, node


def _raised() -> Iterator[tuple[str, str, str, str]]:
    """(code, class, message, module) of every error that is made with a literal code."""
    for path, call in _calls(SOURCE):
        name = call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr == "nearest" else call.func
        code = next((k.value for k in call.keywords if k.arg == "code"), None)
        known = isinstance(name, ast.Name) and isinstance(code, ast.Constant) and isinstance(code.value, str)
        if known and call.args and name.id[0].isupper():
            message = _words(call.args[0])
            if name is not call.func:
                message = f"The {call.args[0].value if isinstance(call.args[0], ast.Constant) else '…'} … does not exist."
            yield str(code.value), name.id, message, path.relative_to(SOURCE).as_posix()


def _refusals() -> Iterator[tuple[int, str, str]]:
    for folder in ("http_request", "http_server"):
        for node in ast.walk(_parsed(SOURCE / "kit" / f"{folder}.py")):
            values = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
            if len(values) == 3 and isinstance(values[0], ast.Constant) and isinstance(values[0].value, int):
                status, code, message = values
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    yield status.value, code.value, _words(message)


def _words(node: ast.expr) -> str:
    """A message as it stands in the source, `…` for what it fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_words(v) for v in node.values)
    return "…"


# -- HTTP ---------------------------------------------------------------------------------------------------

HTTP = """\
# HTTP

{note}

## For applications

| path | |
|---|---|
| `POST /v1/chat/completions` | OpenAI's chat completions, whole or streamed. `model` is an App |
| `POST /v1/completions` | OpenAI's older completions |
| `POST /v1/embeddings` | `model` is a model of `kind: embedding` |
| `POST /v1/responses` | OpenAI's Responses API ([how to](../how-to/responses.md)) |
| `GET`, `DELETE /v1/responses/{{id}}`, `GET /v1/responses/{{id}}/input_items` | a stored Response of the caller's key |
| `GET /v1/models`, `GET /v1/models/{{name}}` | the Apps and embedders that the caller may use |

The key is taken from `Authorization: Bearer …`, `x-api-key` or `api-key`. Where no key exists and the address is loopback,
none is needed. `/api` never takes an app key.

| request field of ours | |
|---|---|
| `conversation` | id of a conversation; with `memory` in the release, what was said before is added (text, or `{{"id": …}}`) |
| `variables` | values for the `{{{{name}}}}` marks of the release's prompt |
| `user`, `safety_identifier` | become a keyed hash, the *subject*, at once; the raw value is not stored |

| request header | |
|---|---|
| `traceparent` | W3C trace context; its trace id is kept |
| `x-noria-tail: 1` | a stream ends with a comment that says its cost and overhead: `: x-noria {{"cost": …, "overhead_ms": …}}` |

| answer header | |
|---|---|
| `x-request-id` | id of the exchange: `noria trace show ID` |
| `x-noria-trace` | W3C trace id |
| `x-noria-release` | id of the release that answered |
| `x-noria-config` | the first 19 characters of the hash of the configuration in force; the trace holds it whole |
| `x-noria-endpoint`, `x-noria-attempts` | the model that answered, or was asked last, and how many attempts were made |
| `x-noria-overhead-ms` | time that was not spent waiting for the model (whole answers only) |
| `x-noria-cost` | US dollars, where the price is known (whole answers only) |

Streams are server-sent events and end in `data: [DONE]`. The usage frame comes to those who ask for it
(`stream_options.include_usage`). With no outward guard each frame has the bytes that the model's server sent.

A request is refused with 403 where its `Host` is not a loopback name, the configured address or one of `serve.hosts`, or where its
`Origin` is another one.

## For operators of the process

| path | |
|---|---|
{health}| `GET /drainz` | Whether the service was asked to drain, and what is being answered, by path |
| `POST /drainz`, `DELETE /drainz` | Begin, end: `/readyz` says no, requests are served on. From this machine, or with the admin token |

## Management API

Needs the admin token (`NORIA_HOME/admin.token`, as `Authorization: Bearer`) or a console session. Schema:
`/api/openapi.json`. A query parameter that a path does not have is a 400 with the nearest one.

| method and path | meaning | parameters |
|---|---|---|
{api}
Everything else is the console. `/login?code=…` opens it once with the code that `noria up` prints.
"""


def http() -> str:
    """The paths: those of applications by hand, the others from the code."""
    from noria.api.gateway import HEALTH
    from noria.api.manage import build
    from noria.app.keeper import Keeper

    health = "".join(f"| `GET {path}` | {_cell(_first(handler.__doc__))} |\n" for path, handler in HEALTH.items())
    paths = build(cast("Keeper", None)).openapi()["paths"]
    rows = []
    for path, methods in paths.items():
        for method, told in methods.items():
            parameters = ", ".join(f"`{p['name']}`" for p in told.get("parameters", []) if p["in"] == "query")
            rows.append(f"| `{method.upper()} {path}` | {_cell(_first(told.get('description', '')))} | {parameters} |\n")
    note = NOTE.format(source="the routes")
    return HTTP.format(note=note, health=health, api="".join(rows))


# -- metrics ------------------------------------------------------------------------------------------------


def metrics() -> str:
    """What `/metrics` exposes."""
    from noria.observe.metrics import FAMILIES

    text = f"""# Metrics

{NOTE.format(source="`observe/metrics.py`")} Prometheus text at `/metrics` of the port that serves; any worker answers for
all workers of the node. `app` is a configured App or embedder, or `unknown`; label sets beyond 500 a metric and worker
are counted under `other`. The `gen_ai_…` names and buckets are those of OpenTelemetry's semantic conventions.

| name | type | labels | meaning |
|---|---|---|---|
"""
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind == "counter" else "")
        labels = " ".join(f"`{label}`" for label in family.labels)
        text += f"| `{name}` | {family.kind} | {labels} | {family.help} |\n"
    return text


# -- extensions, ports, modules -----------------------------------------------------------------------------


def extensions() -> str:
    """Checks, providers, vendors, ports, engines and the catalogue of models."""
    text = f"""# Checks, providers, engines, models

{NOTE.format(source="the modules")} How to add one: [extensions](../how-to/extensions.md).

## Checks

"""
    for name, cls in _shipped("checks", "Check"):
        needs = ", ".join(sorted(cls.needs))
        text += f"### `{name}`\n\n{_doc(f'noria.checks.{name}')}\n\nJudges: {needs}. Scope: {cls.scope}. Cost: {cls.cost}.\n"
        text += _own_options(cls.Config)
    text += "## Providers\n\n"
    for name, cls in _shipped("providers", "Provider"):
        text += f"### `{name}`\n\n{_doc(f'noria.providers.{name}')}\n{_own_options(cls.Config)}"
    return text + _vendors() + _ports() + _catalogue()


def _shipped(kind: str, base: str) -> Iterator[tuple[str, Any]]:
    from noria.contracts import stage
    from noria.kit import extension

    for path in sorted((SOURCE / kind).glob("[a-z]*.py")):
        yield path.stem, extension.load(kind, path.stem, getattr(stage, base))


def _own_options(config: type[msgspec.Struct]) -> str:
    fields = msgspec.structs.fields(config)
    if not fields:
        return "\nNo options.\n\n"
    text = f"\n{' '.join((config.__doc__ or '').split())}\n\n| option | type | when absent |\n|---|---|---|\n"
    for field in fields:
        kind = str(field.type if not isinstance(field.type, type) or hasattr(field.type, "__args__") else field.type.__name__)
        absent = "**required**" if field.required else f"`{_absent(field)}`"
        text += f"| `{field.name}` | `{_cell(kind.replace('typing.', '').split('.')[-1] if '[' not in kind else kind)}` | {absent} |\n"
    return text + "\n"


def _absent(field: Any) -> str:
    made = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return json.dumps(made, ensure_ascii=False, default=list)


def _vendors() -> str:
    from noria.providers.openai_compatible import VENDORS

    text = "## Vendors\n\nRows of `openai_compatible`; `provider: <vendor>` in the configuration.\n\n"
    text += "| vendor | address | usual key | embeddings |\n|---|---|---|---|\n"
    for name, row in VENDORS.items():
        key = f"`env:{row.key}`" if row.key else ""
        text += f"| `{name}` | {row.url or '`url` must be given'} | {key} | {'yes' if row.embedding else 'no'} |\n"
    return text + "\n"


def _ports() -> str:
    from noria.app.stores import PORTS as USED
    from noria.contracts.port import PORTS
    from noria.kit import extension

    ids = [p.stem if p.suffix else p.name for p in sorted((SOURCE / "engines").iterdir()) if p.stem[0].isalpha()]
    by_store = {port: store for store, port in USED.items()}
    text = "## Ports and engines\n\n| port | setting | engines | guarantee |\n|---|---|---|---|\n"
    for name, port in PORTS.items():
        able = " · ".join(f"`{i}`" for i in ids if port in extension.engine(i).serves)
        store = f"`stores.{by_store[port]}`" if port in by_store else "not opened by the service yet"
        text += f"| `{name}` | {store} | {able} | {_cell(_first(port.__doc__))} |\n"
    text += "\n"
    for name in ids:
        text += f"### `{name}`\n\n{_doc(f'noria.engines.{name}').split(chr(10) * 2)[0]}\n\n"
    return text


def _catalogue() -> str:
    from noria.release.catalogue import CATALOGUE

    text = "## Models of the catalogue\n\n`noria models add ID`.\n\n| id | what | languages | licence | download MB | |\n"
    text += "|---|---|---|---|---|---|\n"
    for m in CATALOGUE.values():
        wants = "needs `--accept`" if m.opt_in else ""
        text += f"| `{m.id}` | {m.title} | {', '.join(m.languages)} | {m.licence} | {m.download / 1e6:.0f} | {wants} |\n"
    return text


def modules() -> str:
    """Every package with what belongs there, every module with its first sentence."""
    text = f"# Packages and modules\n\n{NOTE.format(source='the docstrings')} In the order of the import rule, top first.\n"
    packages = ["cli", "api", "web", "app", "settings", "journeys"]
    rest = sorted(p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists())
    ground = ["dialects", "kit", "contracts"]
    for name in [*packages, *(p for p in rest if p not in {*packages, *ground}), *ground]:
        text += f"\n## `noria.{name}`\n\n{_docstring(SOURCE / name / '__init__.py')}\n"
        files = sorted(p for p in (SOURCE / name).rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE / name)
        if files:
            text += "\n| module | |\n|---|---|\n"
        for path in files:
            module = path.relative_to(SOURCE / name).with_suffix("").as_posix().removesuffix("/__init__")
            text += f"| `{module}` | {_cell(_first(_docstring(path)))} |\n"
    return text


def _docstring(path: Path) -> str:
    return ast.get_docstring(_parsed(path)) or ""


def _doc(module: str) -> str:
    return (import_module(module).__doc__ or "").strip()


def _first(text: str | None) -> str:
    """The first sentence or paragraph, on one line."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].removesuffix(".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- the files ----------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {
    "noria.schema.json": schema_text,
    "configuration.md": reference,
    "cli.md": commands,
    "errors.md": errors,
    "http.md": http,
    "metrics.md": metrics,
    "extensions.md": extensions,
    "modules.md": modules,
}


def stale() -> list[str]:
    """The pages that are not what the code says."""
    return [n for n, make in PAGES.items() if not (FOLDER / n).exists() or (FOLDER / n).read_text("utf-8") != make()]


def main(argv: Iterable[str]) -> None:
    """Write the pages; with `--check` write nothing and exit 1 where one is out of date."""
    if "--check" in argv:
        old = stale()
        if old:
            sys.exit(f"out of date in docs/reference: {', '.join(old)}. Run: python docs/generate.py")
        return
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
