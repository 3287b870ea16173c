"""JSON schemas in the subset that Gemini takes, and back: OpenAPI 3.0 objects with types in capitals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noria.contracts.error import RequestError

Fields = dict[str, Any]

_KEPT = (
    "title", "description", "format", "default", "enum", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum",
    "pattern", "minProperties", "maxProperties", "example", "nullable", "required", "propertyOrdering",
)  # fmt: skip
_SILENT = frozenset(
    {"$schema", "$id", "$defs", "definitions", "$comment", "examples", "strict", "type", "properties", "items", "anyOf"}
)
"""Keys that say nothing about values, or are handled apart."""
DEPTH_LIMIT = 32
"""Levels of a schema; references to itself end there."""


def subset(schema: Any, where: str, lost: dict[str, None]) -> Fields:
    """The schema as Gemini takes it; what it has no key for is told in `lost`. References are written out.

    Raises `RequestError` for a schema that refers to itself or to nothing.
    """
    roots = {key: schema.get(key) for key in ("$defs", "definitions") if isinstance(schema, dict)}
    return _subset(schema, roots, where, lost, 0)


def widened(schema: Any) -> Any:
    """A schema of Gemini's as JSON schema: types in small letters, `nullable` as a second type."""
    if isinstance(schema, list):
        return [widened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: Fields = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            made["type"] = [value.lower(), "null"] if schema.get("nullable") else value.lower()
        elif key == "properties" and isinstance(value, dict):
            made[key] = {name: widened(inner) for name, inner in value.items()}
        elif key in ("items", "anyOf"):
            made[key] = widened(value)
        elif key not in ("nullable", "propertyOrdering"):
            made[key] = value
    return made


def _subset(schema: Any, roots: Fields, where: str, lost: dict[str, None], depth: int) -> Fields:
    if depth > DEPTH_LIMIT:
        raise RequestError(
            f"The schema at '{where}' is nested deeper than {DEPTH_LIMIT} levels, or refers to itself: the Gemini API takes neither.",
            code="unsupported_feature",
            param=where,
        )
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        target = _target(schema["$ref"], roots, where)
        return _subset({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, roots, where, lost, depth + 1)
    made = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        made["enum"] = [schema["const"]]
    if "enum" in made:
        made["enum"] = [str(value) for value in made["enum"] if value is not None]
    _type(schema, made)
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {n: _subset(s, roots, where, lost, depth + 1) for n, s in schema["properties"].items()}
        made.setdefault("type", "OBJECT")
    if isinstance(schema.get("items"), dict):
        made["items"] = _subset(schema["items"], roots, where, lost, depth + 1)
    made = _variants(schema, made, lambda s: _subset(s, roots, where, lost, depth + 1))
    for key in schema.keys() - {*_KEPT, *_SILENT, "const", "oneOf"}:
        if not (key == "allOf" and len(schema[key]) == 1):
            lost[f"The schema at '{where}' lost '{key}': the Gemini API has no word for it."] = None
    return made


def _variants(schema: Fields, made: Fields, inner: Callable[[Any], Fields]) -> Fields:
    """`made` with what the schema says of alternatives; `null` among them is `nullable`, one alone needs no list."""
    variants = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(variants, list):
        others = [inner(s) for s in variants if s != {"type": "null"}]
        if len(others) < len(variants):
            made["nullable"] = True
        made |= others[0] if len(others) == 1 else {"anyOf": others}
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
        made = {**inner(schema["allOf"][0]), **made}
    return made


def _type(schema: Fields, made: Fields) -> None:
    kinds = schema.get("type")
    if isinstance(kinds, list):
        others = [k for k in kinds if k != "null"]
        if len(others) < len(kinds):
            made["nullable"] = True
        if len(others) == 1:
            made["type"] = str(others[0]).upper()
        elif others:
            made["anyOf"] = [{"type": str(k).upper()} for k in others]
    elif isinstance(kinds, str):
        made["type"] = kinds.upper()
    elif "enum" in made:
        made["type"] = "STRING"


def _target(ref: Any, roots: Fields, where: str) -> Fields:
    _, _, path = str(ref).partition("#/")
    group, _, name = path.partition("/")
    found = (roots.get(group) or {}).get(name)
    if not isinstance(found, dict):
        raise RequestError(f"The schema at '{where}' refers to {ref!r}, which it does not define.", param=where)
    return found
