"""What the configs of all jobs are made of: strict, frozen sections and checked kinds of values.

Every field says in its name or description what unit it has. Unknown keys, values of the wrong type and
combinations that cannot work are refused before anything starts. Secrets have no field: credentials come
from the environment, URIs that hold any are refused, and what may be presigned is a `Uri` or `UriText`, whose
secrets are not shown in what is written down.

Relative local paths are relative to the directory the job is started in, not to the YAML file. A `Place` is made
absolute when the config is loaded, so that it is the same one for every process; paths that identify an output or a
training (image roots, the data of a training) stay as they are written, and are made absolute where they are read.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.errors import UserError
from pipeline.storage.uris import Uri, UriText, shows_password

_LONGEST_WORD = 100


class ConfigError(UserError):
    """A config that cannot be used. The message says where and what to do, and holds no secrets."""


def is_local_folder(uri: Uri) -> bool:
    """Whether it is a folder of this machine."""
    return uri.local_path is not None and os.path.isdir(uri.local_path)


def check_writable(uri: Uri) -> None:
    """ValueError if nothing can be written to an output."""
    if uri.is_http:
        raise ValueError("output.uri: nothing can be written to http(s): give a local path or an object store")


def _without_user(address: UriText) -> UriText:
    if shows_password(address):
        raise ValueError("an address of Ray holds no password: give host:6379, ray://host:10001 or auto")
    return address


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names; ValueError if one is there twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return names


Text = Annotated[str, Field(min_length=1)]
Score = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Place = Annotated[Uri, AfterValidator(Uri.absolute)]
RayAddress = Annotated[UriText, AfterValidator(_without_user)]
LimitSeconds = Annotated[float, Field(gt=0, le=86_400)]  # a day: no thread can wait for ever


class Section(BaseModel):
    """A config, or a part of one."""

    # strict: "yes" is no number and true no count; YAML has types of its own. Inputs stay out of error
    # messages, because a URI that is refused for the password in it must not be printed.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True, validate_default=True
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` where something known is close, else ``""``."""
    if len(word) > _LONGEST_WORD:  # the comparison takes the product of both lengths
        return ""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
