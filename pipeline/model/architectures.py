"""The architectures that there are: a new one is a line in `ARCHITECTURES`. No torch until a network is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.model.architecture import Architecture, KnownModel, Network, Variant
from pipeline.model.cascade_mask_rcnn.architecture import CASCADE_MASK_RCNN
from pipeline.model.cascade_mask_rcnn.variants import CascadeSizes

if TYPE_CHECKING:
    from pipeline.model.detector import Detector

Named = TypeVar("Named", Variant, KnownModel)


def _by_name(values: Sequence[Named]) -> dict[str, Named]:
    names = [value.name for value in values]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two architectures have one name: {', '.join(sorted(twice))}")
    return dict(zip(names, values, strict=True))


# The first one is that of files which were written before they named theirs.
ARCHITECTURES: tuple[Architecture[Any], ...] = (CASCADE_MASK_RCNN,)

# A config's description of a variant of one's own: the sizes of any of them, as a union.
Sizes = CascadeSizes

VARIANTS = _by_name([v for architecture in ARCHITECTURES for v in architecture.variants])
KNOWN_MODELS = _by_name([m for architecture in ARCHITECTURES for m in architecture.models])

if TYPE_CHECKING:
    VariantName = str
else:
    VariantName = Literal[tuple(VARIANTS)]


def architecture_of(variant: Variant) -> Architecture[Any]:
    """That whose variant this is.

    Raises:
        TypeError: it is of none.
    """
    for known in ARCHITECTURES:
        if isinstance(variant, known.variant_type):
            return known
    raise TypeError(f"{type(variant).__name__} is of none of {', '.join(known.name for known in ARCHITECTURES)}")


def architecture_named(name: str | None) -> Architecture[Any]:
    """That of a file's header; ``None`` where the header does not say.

    Raises:
        ValueError: there is none of this name.
    """
    if name is None:
        return ARCHITECTURES[0]
    for known in ARCHITECTURES:
        if known.name == name:
            return known
    raise ValueError(f"architecture {name!r} is none of {', '.join(known.name for known in ARCHITECTURES)}")


def network_of(variant: Variant) -> Network[Any, Any]:
    """What computes with such a variant."""
    return architecture_of(variant).network()


def build(variant: Variant, drop_path_rate: float = 0.0) -> Detector:
    """A detector with weights of no meaning.

    Args:
        drop_path_rate: rate of the last block of the backbone; 0: none is dropped.
    """
    return network_of(variant).build(variant, drop_path_rate)


def giga_macs(variant: str, area: float) -> float | None:
    """Multiply-adds in billions of a published variant for an input of this many pixels; ``None`` for any other."""
    known = VARIANTS.get(variant)
    return None if known is None else architecture_of(known).giga_macs(known, area)
