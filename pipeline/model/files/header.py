"""What a checkpoint file of ours says about itself: read without its weights, and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError
from pipeline.model.architecture import Variant
from pipeline.model.architectures import architecture_named
from pipeline.model.categories import Category
from pipeline.model.settings import TestSettings

FORMAT = "maskfleet-1"

_DIGESTED = frozenset({"F32", "I64"})  # as which weights are digested, whatever they lie in a file as


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Header:
    """What a detector's weights mean.

    Attributes:
        variant: sizes of an architecture.
        categories: what label 0, 1, ... stand for.
        settings: test settings the weights were made for.
        source: where they came from: file name, layout, sha256 of that file, and what a converter adds.
        weights_sha256: `pipeline.model.files.checkpoints.weights_digest` of the weights.
    """

    variant: Variant
    categories: tuple[Category, ...]
    settings: TestSettings
    source: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Header:
        """From the texts in the header of a file of ours, whose digest is that of the weights as they lie there.

        Raises:
            ValueError, TypeError: they are not what `pipeline.model.files.checkpoints.save_checkpoint` writes.
        """
        return cls(
            variant=architecture_named(texts.get("architecture")).variant_from_dict(header_object(texts, "variant")),
            categories=tuple(_category(*pair) for pair in _header_json(texts, "categories")),
            settings=TestSettings.from_dict(header_object(texts, "settings")),
            source=header_object(texts, "source"),
            weights_sha256=texts.get("weights_sha256", ""),
        )


def read_header(path: Path) -> Header | None:
    """What a file says about itself; ``None`` where only its weights tell, or whoever reads them says what is wrong.

    The digest is the one that was written, and is as good as the file: whoever goes on to use the weights compares it
    with theirs (`pipeline.model.files.checkpoints.load_checkpoint` does).
    """
    try:
        with safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        if texts.get("format") != FORMAT or not kinds <= _DIGESTED:
            return None
        return Header.parse(texts)
    except (SafetensorError, OSError, TypeError, ValueError):
        return None


def header_object(texts: Mapping[str, str], key: str) -> dict[str, Any]:
    """What a header of ours holds under a key: an object in JSON.

    Raises:
        CheckpointError: it does not.
    """
    value = _header_json(texts, key)
    if not isinstance(value, dict):
        raise CheckpointError(f"the header's {key} is no JSON object")
    return value


def _header_json(texts: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(texts[key])
    except KeyError:
        raise CheckpointError(f"the header lacks {key!r}") from None
    except (ValueError, RecursionError) as error:  # no JSON, or lists in lists in lists
        raise CheckpointError(f"the header's {key} is damaged: {str(error)[:100]}") from None


def _category(number: Any, name: Any) -> Category:
    if type(number) is not int or not -(1 << 31) <= number < 1 << 31 or not isinstance(name, str):
        raise ValueError(f"{str(number)[:30]!r}, {str(name)[:30]!r} are no id and name of a class")
    return Category(number, name)
