"""YAML file and ``--set`` overrides -> a job's config, with errors that say where and what to do.

YAML is read by the 1.2 rules that editors follow too: only ``true`` and ``false`` are booleans (``no`` is a
word), ``1e6`` is a number, nothing becomes a date or a base-60 number. Duplicate keys are errors. What a file may
hold is bounded, aliases counted as what they stand for, so that none takes the loader's time or memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.base import ConfigError, Section, did_you_mean
from pipeline.storage.uris import UriText

logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 20  # a file; the thresholds of 15,000 classes with their comments
MAX_NODES = 50_000  # keys and values of a file
MAX_DEPTH = 40  # lists and mappings in each other
_MAX_PROBLEMS = 20  # that one error lists
_MAX_NAME = 200  # characters of a key that are shown
_NO_COMMENT = "what stands behind ' #' is a comment: put quotes around text that holds it"
_CUT_OFF = re.compile(r"[ \t]+#[^\s#]")  # a comment that may be meant as part of a path: people set a blank behind "#"

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
    """Plain data only, with the scalars of YAML 1.2's core schema, and not more of it than a config needs."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 as in the base class
    yaml_constructors: ClassVar[dict[Any, Any]] = {}  # filled below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.has_comment = False
        self._num_nodes = 0
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def scan_to_next_token(self) -> None:
        """Between tokens are blanks, line breaks and comments."""
        start = self.pointer
        super().scan_to_next_token()
        self.has_comment |= "#" in self.buffer[start : self.pointer]

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """An alias counts as all that it stands for."""
        event = self.peek_event()
        before = self._num_nodes
        self._num_nodes += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"more than {MAX_DEPTH} lists and mappings in each other", event)
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                self._refuse(f"*{event.anchor} stands in what it names", event)
            self._num_nodes += self._sizes[node]
        if self._num_nodes > MAX_NODES:
            self._refuse(f"more than {MAX_NODES:,} keys and values, aliases counted as what they stand for", event)
        self._sizes.setdefault(node, self._num_nodes - before)
        return node

    def _refuse(self, problem: str, event: Any) -> None:
        raise yaml.composer.ComposerError(None, None, problem, event.start_mark)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = int(node.value) if len(node.value) <= 20 else None
    if value is None or not -(2**63) <= value < 2**63:
        raise yaml.constructor.ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
    return value


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", node.value.lower()))


for _tag, _pattern, _first_characters, _constructor in (
    ("null", r"(~|null|Null|NULL)?", "~nN", _Loader.construct_yaml_null),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", _Loader.construct_yaml_bool),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789", _int),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        _float,
    ),
    ("str", None, "", _Loader.construct_yaml_str),
    ("seq", None, "", _Loader.construct_yaml_seq),
    ("map", None, "", _Loader.construct_yaml_map),
    (None, None, "", _Loader.construct_undefined),
):
    _name = _tag and f"tag:yaml.org,2002:{_tag}"
    _Loader.yaml_constructors[_name] = _constructor
    if _pattern is not None:
        # The loader only matches a prefix. An empty scalar has no first character: "" stands for that.
        _firsts = [*_first_characters, *([""] if _tag == "null" else [])]
        _Loader.add_implicit_resolver(_name, re.compile(rf"(?:{_pattern})\Z"), _firsts)


def load_config(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config.

    Args:
        kind: class of the job's config.
        path: of the YAML file.
        overrides: ``section.key=value``, later ones win. The setting decides how a value is read: text, paths and
            URIs are taken as they are, to the last character; everything else is YAML: ``0.3``, ``[a, b]``,
            ``{person: 0.5}``. Of settings that may be null, ``null`` and an empty value are that.

    Raises:
        ConfigError: the file cannot be read, or what it says cannot be used; every problem is listed.
    """
    values, lines = _read_mapping(UriText(str(path)))
    sources: dict[KeyPath, str] = {key: f"{path}, line {line}" for key, line in lines.items()}
    for name in [key for key, value in values.items() if value is None and key in _sections(kind)]:
        del values[name]  # a section whose keys are all commented out
    for text in overrides:
        key, value = _parse_override(kind, text)
        _put(values, key, value, text)
        sources = {k: v for k, v in sources.items() if k[: len(key)] != key}
        sources[key] = f"--set {'.'.join(key)}"
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_report(kind, str(path), error, sources)) from None


def parse_settings(kind: type[Config], option: str, texts: Sequence[str]) -> Config:
    """Settings that stand in a command line as ``key=value``.

    Args:
        kind: class of the settings.
        option: that they follow, for messages.
        texts: as the overrides of `load_config`.

    Raises:
        ConfigError: what they say cannot be used.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, value = _parse_override(kind, text)
        _put(values, key, value, text)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_report(kind, option, error, {})) from None


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
        with open(path.secret_text, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: larger than {MAX_BYTES >> 20} MiB, which no file of settings is: is it another file?"
        )
    values, lines = _parse(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: the file is empty; maskfleet config has ready ones to start from")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top, found {_kind(values)}")
    return values, lines


def _parse(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    """The values of a YAML text, and the line of each key."""
    is_override = source.startswith("--set")
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}, line {line}: the character {error.character:#06x} has no place in YAML") from None
    try:
        node = loader.get_single_node()
        if is_override and loader.has_comment:
            raise ConfigError(f"{source}: {_NO_COMMENT}")
        lines: dict[KeyPath, int] = {}
        if node is None:
            return None, lines
        _note_lines(node, (), lines, source)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if is_override and loader.has_comment:
            raise ConfigError(f"{source}: {_NO_COMMENT}") from None
        where = f"{source}, line {mark.line + 1}" if mark and not is_override else source
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{where}: not valid YAML: {_shortened(problem)}") from None
    except ConfigError:
        raise
    except (ValueError, KeyError):
        raise ConfigError(f"{source}: not valid YAML: a value that cannot be represented") from None
    finally:
        loader.dispose()


def _note_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], source: str) -> None:
    """Find the line of every key, and keys that are no text or there twice."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _note_lines(item, (*at, str(i)), lines, source)
    if isinstance(node, yaml.ScalarNode):
        _warn_of_cut_off(node, at, source)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{source}, line {line}: a key must be text: put quotes around it")
        key = (*at, key_node.value)
        if key in lines:
            raise ConfigError(f"{source}, line {line}: {_dotted(key)} is set twice, first in line {lines[key]}")
        lines[key] = line
        _note_lines(value_node, key, lines, source)


def _warn_of_cut_off(node: yaml.ScalarNode, at: KeyPath, source: str) -> None:
    """``/photos/Trip #3``."""
    end: Any = node.end_mark
    if node.style is None and node.tag == "tag:yaml.org,2002:str" and _CUT_OFF.match(end.buffer, end.pointer):
        logger.warning(
            "%s, line %d: %s is '%s', and what stands behind ' #' is a comment: put quotes around all of it if that is "
            "part of the value",
            *(source, end.line + 1, _dotted(at), UriText(_shortened(node.value))),
        )


def _parse_override(kind: type[Section], text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {key}: expected section.key=value, for example model.batch_size=4")
    expected, path = _expected_at(kind, key)
    if any(map(_is_text, expected)):
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":  # as YAML had them once, and shells take off
            logger.warning("--set %s: the quotes are taken as part of the text", key.strip())
        return path, None if NoneType in expected and value in ("", "null") else value
    return path, _parse(value, f"--set {key.strip()}")[0]


def _expected_at(kind: Any, name: str) -> tuple[tuple[Any, ...], KeyPath]:
    """The types that a setting may have, and its path; what is no setting may be text.

    A key of a mapping goes on to the end, whatever dots are in it.
    """
    parts = name.split(".")
    path = tuple(part.strip() for part in parts)
    for i, part in enumerate(path):
        for one in _alternatives(kind):
            if isinstance(one, type) and issubclass(one, BaseModel):
                field = one.model_fields.get(part)
                kind = str if field is None else field.annotation
                break
            if get_origin(one) in (list, tuple) and part.isdecimal():
                kind = get_args(one)[0]
                break
            if get_origin(one) is dict:
                return tuple(_alternatives(get_args(one)[1])), (*path[:i], ".".join(parts[i:]).strip())
        else:
            kind = str
    return tuple(_alternatives(kind)), path


def _alternatives(kind: Any) -> Iterator[Any]:
    """The types of a union, or the one that it is."""
    if get_origin(kind) is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in get_args(kind))
    return isinstance(kind, type) and issubclass(kind, str | UriText)


def _put(values: dict[str, Any], path: KeyPath, value: Any, text: str) -> None:
    name = f"--set {text.partition('=')[0]}"
    inside: dict[str, Any] | list[Any] = values
    for i, part in enumerate(path):
        at = _key_in(inside, part, f"{name}: {'.'.join(path[:i])}")
        if i == len(path) - 1:
            inside[at] = value
            return
        below = inside[at] if isinstance(inside, list) else inside.get(at)
        if below is None:
            below = inside[at] = {}
        if not isinstance(below, dict | list):
            raise ConfigError(f"{name}: {'.'.join(path[: i + 1])} holds a value, not keys")
        inside = below


def _key_in(inside: dict[str, Any] | list[Any], part: str, subject: str) -> Any:
    """A key; of a list the number of an element that the file has."""
    if isinstance(inside, dict):
        return part
    if not part.isdecimal() or int(part) >= len(inside):
        raise ConfigError(f"{subject} is a list of {len(inside)}, numbered from 0: it has no {part!r}")
    return int(part)


def _report(kind: type[Section], path: str, error: ValidationError, sources: Mapping[KeyPath, str]) -> str:
    found = error.errors(include_url=False)
    problems = [_problem(kind, dict(one), path, sources) for one in found[:_MAX_PROBLEMS]]
    if len(found) == 1:
        return problems[0]
    if len(found) > _MAX_PROBLEMS:
        problems.append(f"and {len(found) - _MAX_PROBLEMS:,} more")
    return "\n  ".join([f"{path}: {len(found):,} problems", *problems])


def _problem(kind: type[Section], error: dict[str, Any], path: str, sources: Mapping[KeyPath, str]) -> str:
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    name = _dotted(key)
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


def _dotted(key: KeyPath) -> str:
    return _shortened(".".join(key))


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."


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
