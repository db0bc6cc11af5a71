"""The seam between the detectors and everything else: all that depends on the kind of detector is one value.

A kind of detector is an `Architecture`: facts that cost nothing to import, so that configs may ask for them, and
behind `Architecture.network` what computes. `pipeline.model.architectures` lists those that there are; nothing outside
an architecture's own folder names one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pipeline.model.settings import SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.model.detector import Detector


class Variant(Protocol):
    """All that decides the shape of a weight: a frozen dataclass of each architecture's own, whole as JSON."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str:
        """For people and for metadata; ``custom`` where the sizes are none that were published."""

    @property
    def num_classes(self) -> int:
        """Object classes, background not counted."""

    def sizes(self) -> str:
        """For people: what tells it from others."""


V = TypeVar("V", bound=Variant)
D = TypeVar("D", bound="Detector")


@dataclass(frozen=True)
class KnownModel:
    """A published detector.

    Attributes:
        name: what users write to have it.
        url: where the file lies.
        box_map: COCO val2017 box mAP, percent, as published.
        mask_map: COCO val2017 mask mAP, percent, as published.
        licence: of the repository it comes from; none of them states another one for the weights.
        sha256: of the file, or None where nobody here has seen it.
    """

    name: str
    url: str
    box_map: float
    mask_map: float
    licence: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """What the file is called in the cache: unique, with the published suffix."""
        return self.name + "." + self.url.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Architecture(Generic[V]):
    """A kind of detector.

    Attributes:
        name: in the headers of files; never changed again.
        title: what people call it.
        variant_type: class of its variants, and of no other architecture's.
        variant_from_dict: the variant that ``dataclasses.asdict`` wrote (lists, as JSON has them, are accepted);
            ValueError where it is none.
        variants: those that were published.
        models: checkpoints that were published.
        drop_path: rate of the last block (Huang et al. 2016, arXiv 1603.09382) in the published training of a variant.
        giga_macs: multiply-adds in billions for an input of this many pixels; asked for `variants` only.
        network: what computes. Imports torch when it is first called.
    """

    name: str
    title: str
    variant_type: type[V]
    variant_from_dict: Callable[[Mapping[str, Any]], V]
    network: Callable[[], Network[V, Any]]
    variants: tuple[V, ...] = ()
    models: tuple[KnownModel, ...] = ()
    drop_path: Callable[[V], float] = lambda variant: 0.0
    giga_macs: Callable[[V, float], float | None] = lambda variant, area: None


@dataclass(frozen=True)
class Layouts(Generic[V]):
    """How an architecture's weights are named in files of others. Pure functions on names and state dicts.

    Attributes:
        detect: name of the layout that has these names (prefixes already stripped); `LayoutError` where none has.
        to_native: the same weights under this project's names; a backbone's layout gives ``backbone.*`` alone.
        infer_variant: read off the shapes of native weights; `LayoutError` where they are incomplete.
        backbone: of classifiers that training starts from; ``None``: there are none.
    """

    detect: Callable[[Collection[str]], str]
    to_native: Callable[[Mapping[str, Tensor], str], dict[str, Tensor]]
    infer_variant: Callable[[Mapping[str, Tensor]], V]
    backbone: BackboneLayouts[V] | None = None


@dataclass(frozen=True)
class BackboneLayouts(Generic[V]):
    """Those of classifiers whose weights a detector's backbone starts from.

    Attributes:
        names: those of the layouts that are such a classifier's.
        sizes: fields of the variant that the backbone decides.
        infer_variant: a variant with such a backbone; nothing but `sizes` means anything in it.
        covers: whether the weight of this name in the detector is one that a classifier has.
    """

    names: tuple[str, ...]
    sizes: tuple[str, ...]
    infer_variant: Callable[[Mapping[str, Tensor]], V]
    covers: Callable[[str], bool]


@dataclass(frozen=True)
class Network(Generic[V, D]):
    """What an architecture computes.

    Attributes:
        build: a detector with weights of no meaning; the number is the drop path rate of its last block.
        loss: what to wrap in DDP: it maps a `pipeline.model.batch.Batch` and a generator, which decides what is
            sampled, to the weighted parts of the loss, float32 scalars. Every parameter takes part in every batch.
        initialise: sets all weights that need no training data, the same for the same seed.
        initialise_class_layers: sets the layers whose outputs belong to classes, from the global random state, and
            gives the names of their weights.
        decays: whether weight decay applies to the parameter of this name.
        layouts: of files that others wrote; ``None``: there are only our own.
        recomputed: the blocks whose activations are worth computing twice where memory is short.
        fold_batch_norm: makes each norm that can be part of the convolution before it, in place and in eval mode.
        float32: the layers that stay float32 in half precision, and are given float32: those whose outputs are ranked
            or exceed thresholds, so that rounding makes no ties.
        fuse_attention: has attention computed by PyTorch's fused kernels, in place, in eval mode and on the final
            weights.
    """

    build: Callable[[V, float], D]
    loss: Callable[[D, SamplingConfig], nn.Module]
    initialise: Callable[[D, int], None]
    initialise_class_layers: Callable[[D], list[str]]
    decays: Callable[[str], bool]
    layouts: Layouts[V] | None = None
    recomputed: tuple[type[nn.Module], ...] = ()
    fold_batch_norm: Callable[[D], None] = lambda detector: None
    float32: Callable[[D], Sequence[nn.Module]] = lambda detector: ()
    fuse_attention: Callable[[D], None] = lambda detector: None
