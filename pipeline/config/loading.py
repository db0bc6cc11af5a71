"""YAML file and ``--set`` overrides -> a job's config, with errors that say where and what to do.

YAML is read by the 1.2 rules that editors follow too: only ``true`` and ``false`` are booleans (``no`` is a
word), ``1e6`` is a number, nothing becomes a date or a base-60 number. Duplicate keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.base import ConfigError, Section, did_you_mean
from pipeline.storage.uris import UriText

Config = TypeVar("Config", bound=Section)
Value = TypeVar("Value")
KeyPath = tuple[str, ...]
_EXPECTED = {
    "int_type": "a whole number without quotes, point or exponent",
    "float_type": "a number without quotes",
    "bool_type": "true or false",
    "string_type": "text (numbers in quotes)",
    "tuple_type": "a list: [a, b]",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}


class _Loader(yaml.SafeLoader):
    """Plain data only, with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 as in the base class


for _tag, _pattern, _first_characters in (
    ("null", r"(~|null|Null|NULL)?", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    # The loader only matches a prefix. An empty scalar has no first character: "" stands for that.
    _firsts = [*_first_characters, *([""] if _tag == "null" else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _firsts)


def load_config(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config.

    Args:
        kind: class of the job's config.
        path: of the YAML file.
        overrides: ``section.key=value``, later ones win. Values are YAML: ``[a, b]``, ``null``, ``0.3``,
            ``{person: 0.5}``; an empty value is null.

    Raises:
        ConfigError: the file cannot be read, or what it says cannot be used; every problem is listed.
    """
    values, lines = _read_mapping(UriText(str(path)))
    sources: dict[KeyPath, str] = {key: f"{path}, line {line}" for key, line in lines.items()}
    for name in [key for key, value in values.items() if value is None and key in _sections(kind)]:
        del values[name]  # a section whose keys are all commented out
    for text in overrides:
        key, value = _parse_override(text)
        _put(values, key, value, text)
        sources = {k: v for k, v in sources.items() if k[: len(key)] != key}
        sources[key] = f"--set {'.'.join(key)}"
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_report(kind, str(path), error, sources)) from None


def read_values(path: UriText, kind: type[Value], form: str) -> Value:
    """Read a YAML file of keys and values that is no config.

    Args:
        path: path or URI of the file.
        kind: what is in it, such as ``dict[str, float]``.
        form: of a line, for messages: ``name: score``.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    found, _ = _read_mapping(path)
    try:
        return TypeAdapter(kind).validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {first['loc'][0]}: {_sentence(dict(first))} (expected '{form}')") from None


def config_schema(kind: type[Section]) -> dict[str, Any]:
    """The JSON schema of a job's YAML file, for editors."""
    schema = kind.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read_mapping(path: UriText) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The content of a YAML file whose top is a mapping, and the line of each key."""
    try:
        text = Path(path.secret_text).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    values, lines = _parse(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: the file is empty; configs/ holds ready ones to start from")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top, found {_kind(values)}")
    return values, lines


def _parse(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is None:
            return None, lines
        _note_lines(node, (), lines, source)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark and not source.startswith("--set") else source
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except ConfigError:
        raise
    except (ValueError, RecursionError):
        raise ConfigError(f"{source}: not valid YAML: a value that cannot be represented") from None
    finally:
        loader.dispose()


def _note_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], source: str) -> None:
    """Find the line of every key, and keys that are no text or there twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{source}, line {line}: a key must be text: put quotes around it")
        key = (*at, key_node.value)
        if key in lines:
            raise ConfigError(f"{source}, line {line}: {'.'.join(key)} is set twice, first in line {lines[key]}")
        lines[key] = line
        _note_lines(value_node, key, lines, source)


def _parse_override(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {key}: expected section.key=value, for example model.batch_size=4")
    return path, _parse(value, f"--set {key.strip()}")[0]


def _put(values: dict[str, Any], path: KeyPath, value: Any, text: str) -> None:
    for i, part in enumerate(path[:-1]):
        below = values.get(part)
        if below is None:
            below = values[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {text.partition('=')[0]}: {'.'.join(path[: i + 1])} holds a value, not keys")
        values = below
    values[path[-1]] = value


def _report(kind: type[Section], path: str, error: ValidationError, sources: dict[KeyPath, str]) -> str:
    problems = [_problem(kind, dict(one), path, sources) for one in error.errors(include_url=False)]
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{path}: {len(problems)} problems", *problems])


def _problem(kind: type[Section], error: dict[str, Any], path: str, sources: dict[KeyPath, str]) -> str:
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    name = ".".join(key)
    known = [key[:n] for n in range(len(key), 0, -1) if key[:n] in sources]
    below = [source for source_key, source in sources.items() if source_key[: len(key)] == key]
    where = sources[known[0]] if known else below[0] if key and below else path
    subject = where if not name or where == f"--set {name}" else f"{where}: {name}"
    if error["type"] == "extra_forbidden":
        fields = list(_fields(kind, key[:-1]))
        return f"{subject}: no such setting" + (did_you_mean(key[-1], fields) or f"; known here: {', '.join(fields)}")
    if error["type"] == "missing":
        field = _fields(kind, key[:-1]).get(key[-1])  # none for an item of a list
        return f"{subject} is missing: add it. {field.description if field else ''}".rstrip()
    return f"{subject}: {_sentence(error)}"


def _sentence(error: dict[str, Any]) -> str:
    """What is wrong, in YAML's words. The value itself is never shown: it may hold a secret."""
    expected = _EXPECTED.get(error["type"])
    if expected:
        return f"must be {expected}, found {_kind(error['input'])}"
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")


def _sections(kind: type[Section]) -> set[str]:
    return {key for key in kind.model_fields if _fields(kind, (key,))}


def _fields(model: type[BaseModel], path: KeyPath) -> dict[str, FieldInfo]:
    """The fields of a section; none for what is not a section."""
    for part in path:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if get_origin(annotation) is not None or not (
            isinstance(annotation, type) and issubclass(annotation, BaseModel)
        ):
            return {}
        model = annotation
    return dict(model.model_fields)


def _kind(value: object) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "keys and values", str: "text", int: "a whole number"}
    kinds |= {float: "a decimal number", bool: "a boolean", type(None): "nothing"}
    return kinds.get(type(value), type(value).__name__)
