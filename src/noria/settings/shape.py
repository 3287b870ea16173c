"""What the mappings of `noria.yaml` are made of: names, sizes, durations, references, and the strict base of them all."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from noria.settings.environment import reference_problem

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,99}\Z")
_SIZE = re.compile(r"(\d+)\s*([kmg]i?b|b)\Z", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError("A name is made of letters, digits and . _ / : -, begins with a letter or digit, and has at most 100")
    return value


def size(value: Any) -> Any:
    """Bytes of `16777216` or `"16MB"`. Units are binary, as in most servers: 1 MB = 1 MiB = 1,048,576 bytes."""
    if not isinstance(value, str):
        return value
    found = _SIZE.match(value.strip())
    if not found:
        raise ValueError('A size is a number of bytes or text such as "16MB" (kB, MB, GB)')
    unit = found[2].lower()
    return int(found[1]) * 1024 ** " kmg".index(unit[0] if unit != "b" else " ")


def seconds(value: Any) -> Any:
    """Seconds of `5`, `"5s"`, `"500ms"`, `"2m"`, `"1h"` or `"14d"`."""
    if not isinstance(value, str):
        return value
    found = _DURATION.match(value.strip())
    if not found:
        raise ValueError('A duration is a number of seconds or text such as "5s" (ms, s, m, h, d)')
    return float(found[1]) * _UNITS[found[2]]


def _secret(value: str) -> str:
    wrong = reference_problem(value)
    if wrong:
        raise ValueError(wrong)
    return value


def _http_url(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("A URL begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("A URL must not hold a user name or password. Use key: env:NAME")
    return value.rstrip("/")


def _store_url(value: str) -> str:
    if value.startswith(("env:", "file:")) and "://" not in value:
        return _secret(value)
    if "://" not in value:
        raise ValueError("A store is named by a URL such as sqlite:///path.db, or by env:NAME")
    if _split(value).password is not None:
        raise ValueError("A secret must not stand in the configuration. Put the whole URL in a variable and write env:NAME")
    return value


def _split(value: str) -> Any:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  reading it is what checks it
    except ValueError:
        raise ValueError("This is not a URL") from None
    return parts


def listed(value: Any) -> Any:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Size = Annotated[
    int, BeforeValidator(size, json_schema_input_type=int | Annotated[str, Field(pattern=r"^\d+ *[kKmMgG]?[iI]?[bB]$")])
]
Duration = Annotated[
    float, BeforeValidator(seconds, json_schema_input_type=float | Annotated[str, Field(pattern=r"^\d+(\.\d+)? *(ms|s|m|h)$")])
]
SecretReference = Annotated[str, AfterValidator(_secret), WithJsonSchema({"type": "string", "pattern": "^(env|file):.+$"})]
HttpUrl = Annotated[str, AfterValidator(_http_url), WithJsonSchema({"type": "string", "pattern": "^https?://.+$"})]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
Texts = Annotated[list[str], BeforeValidator(listed, json_schema_input_type=str | list[str])]


class Strict(BaseModel):
    """Base of the tree: frozen, unknown keys refused, no conversion between types, values never in errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        validate_default=True,
        defer_build=True,  # the tree is built once, from its root, not once more for each branch
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the text below each field as its description: read when a schema is asked for, not at each start, where it
        would be a third of the import of the tree.
        """
        made = handler(schema)
        properties = handler.resolve_ref_schema(made)["properties"]
        for name, text in _texts_of(cls).items():
            properties[cls.model_fields[name].alias or name]["description"] = text
        return made


def _texts_of(model: type[Strict]) -> dict[str, str]:
    """What stands below each field in the source of `model` and its bases."""
    found = {}
    for part in reversed(model.__mro__[: model.__mro__.index(Strict)]):
        (written,) = ast.parse(inspect.getsource(part)).body
        assert isinstance(written, ast.ClassDef)
        for field, below in pairwise(written.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value))
    return found
