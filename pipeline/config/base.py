"""What the configs of all jobs are made of: strict, frozen sections and checked kinds of values.

Every field says in its name or description what unit it has. Unknown keys, values of the wrong type and
combinations that cannot work are refused before anything starts. Secrets have no field: credentials come
from the environment, and URIs that hold any are refused or, for presigned queries, redacted in what is
written down.

Relative local paths are relative to the directory the job is started in, not to the YAML file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.errors import UserError
from pipeline.storage.uris import UriError, redact, split_uri


class ConfigError(UserError):
    """A config that cannot be used. The message says where and what to do, and holds no secrets."""


def _checked_uri(uri: str) -> str:
    try:
        split_uri(uri)
    except UriError as error:
        raise ValueError(str(error)) from None
    return uri


def place(uri: str) -> tuple[str, ...]:
    """Scheme, host and path components, so that one place is below another if it starts with it."""
    scheme, host, path = split_uri(uri)
    if scheme == "file":
        path = os.path.abspath(path)
    return (scheme, host, *(part for part in path.split("/") if part not in ("", ".")))


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names; ValueError if one is there twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return names


Text = Annotated[str, Field(min_length=1)]
Uri = Annotated[str, Field(min_length=1), AfterValidator(_checked_uri)]
Score = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A config, or a part of one."""

    # strict: "yes" is no number and true no count; YAML has types of its own. Inputs stay out of error
    # messages, because a URI that is refused for the password in it must not be printed.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True, validate_default=True
    )


def resolved(config: Section, uri_keys: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """All settings, defaults included, for people and reports: JSON-able, URIs without their secrets.

    Args:
        config: of a job.
        uri_keys: the keys of each section that hold URIs or lists of them.
    """
    values = config.model_dump(mode="json")
    for section, keys in uri_keys.items():
        for key in keys:
            value = values[section][key]
            if value is not None:
                values[section][key] = redact(value) if isinstance(value, str) else [redact(v) for v in value]
    return values


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` where something known is close, else ``""``."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
