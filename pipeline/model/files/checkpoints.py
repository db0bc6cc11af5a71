"""Checkpoint files: read any published layout, write our own. The model's only file I/O.

Our own file is safetensors: the weights under the project's names, and in the header what they mean
(architecture, variant, categories, test settings, where they came from, a digest of the weights). Everything else is
read once by the converter, with ``weights_only=True``: a file that wants to run code is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.messages.examples import Examples
from pipeline.model.architecture import Layouts, Variant
from pipeline.model.architectures import ARCHITECTURES, architecture_of, build
from pipeline.model.categories import COCO_CATEGORIES, Category
from pipeline.model.files.header import FORMAT, CheckpointError, Header
from pipeline.model.files.state_dict import LayoutError, StateDict, check_keys, strip_prefix
from pipeline.model.settings import TestSettings
from pipeline.storage.whole_file import write_whole

_OS_ERROR = re.compile(r"\(os error (\d+)\)")

logger = logging.getLogger(__name__)

BACKBONE_FORMAT = "maskfleet-backbone-1"


class BackboneOnlyError(CheckpointError):
    """A usable file, but of a backbone alone: see `pipeline.model.files.backbones`."""


@dataclass(frozen=True)
class Checkpoint:
    """A detector's weights and what they mean.

    Attributes:
        weights: native names, float32 on the CPU (counters int64).
        variant: sizes of an architecture.
        categories: what label 0, 1, ... stand for; ``variant.num_classes`` of them.
        settings: test settings the weights were made for.
        source: where they came from: file name, layout, sha256 of that file, and what a converter adds.
        weights_sha256: `weights_digest` of the weights.
    """

    weights: StateDict
    variant: Variant
    categories: tuple[Category, ...]
    settings: TestSettings
    source: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    def __post_init__(self) -> None:
        if len(self.categories) != self.variant.num_classes:
            raise CheckpointError(
                f"{len(self.categories)} categories for a model of {self.variant.num_classes} classes"
            )
        for kind in ("name", "id"):
            counts = Counter(getattr(category, kind) for category in self.categories)
            if twice := [value for value, count in counts.items() if count > 1]:
                raise CheckpointError(f"several classes have one {kind}: {Examples.of(map(str, twice))}")
        with torch.device("meta"):
            expected = build(self.variant).state_dict()
        try:
            check_keys(expected, self.weights)
        except LayoutError as error:
            raise CheckpointError(str(error)) from error
        if not self.weights_sha256:
            object.__setattr__(self, "weights_sha256", weights_digest(self.weights))


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes in name order: the same whatever file the weights lay in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: str | Path, categories: Sequence[Category] | None = None) -> Checkpoint:
    """A detector from any of the known layouts.

    Args:
        path: a safetensors file of ours, or a ``.pth`` / ``.pt`` file of the official repository,
            ModelScope or mmdet 3.x.
        categories: what the labels stand for, where the file does not say and they are not COCO's 80.

    Raises:
        CheckpointError: the file is missing, damaged, wants to run code, or is not such a detector.
    """
    path = Path(path)
    state, header, meta = read_weights(path)
    if header.get("format") == FORMAT:
        return _from_own_file(path, state, header, categories)
    try:
        if header.get("format") == BACKBONE_FORMAT:
            raise _backbone_only(path)
        layouts, layout = recognise(state)
        if is_backbone(layouts, layout):
            raise _backbone_only(path)
        native = as_float32(layouts.to_native(state, layout))
        return Checkpoint(
            weights=native,
            variant=(variant := layouts.infer_variant(native)),
            categories=_categories(meta, variant.num_classes, categories),
            settings=TestSettings(),
            source={"file": path.name, "layout": layout, "sha256": file_sha256(path)},
        )
    except BackboneOnlyError:
        raise
    except (LayoutError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write our own safetensors file; it appears whole or not at all."""
    header = {
        "format": FORMAT,
        "architecture": architecture_of(checkpoint.variant).name,
        "variant": json.dumps(asdict(checkpoint.variant)),
        "categories": json.dumps([[c.id, c.name] for c in checkpoint.categories]),
        "settings": json.dumps(asdict(checkpoint.settings)),
        "source": json.dumps(checkpoint.source),
        "weights_sha256": checkpoint.weights_sha256,
    }
    write_safetensors(checkpoint.weights, path, header)


def recognise(names: Collection[str]) -> tuple[Layouts[Any], str]:
    """The layout of a published file, with the layouts of its architecture.

    Args:
        names: of the weights, prefixes already stripped.

    Raises:
        LayoutError: no architecture knows them; the message has what each says.
    """
    refused = []
    for architecture in ARCHITECTURES:
        layouts = architecture.network().layouts
        if layouts is None:
            continue
        try:
            return layouts, layouts.detect(names)
        except LayoutError as error:
            refused.append(str(error))
    raise LayoutError("; ".join(refused))


def is_backbone(layouts: Layouts[Any], layout: str) -> bool:
    """Whether files of this layout hold a classifier, and no detector."""
    return layouts.backbone is not None and layout in layouts.backbone.names


def read_weights(path: Path) -> tuple[StateDict, Mapping[str, str], Mapping[str, Any]]:
    """A file's tensors (prefixes stripped), its safetensors header, and what else a torch file says about itself.

    Raises:
        CheckpointError: the file is missing, damaged, or wants to run code.
    """
    header: Mapping[str, str] = {}
    meta: Mapping[str, Any] = {}
    if _is_safetensors(path):
        state, header = _read_safetensors(path)
    else:
        state, meta = _read_pickle(path)
    _check_tensors(path, state)
    return state, header, meta


def _check_tensors(path: Path, state: StateDict) -> None:
    """Weights that compute nothing but NaN find nothing, without an error: here they are one.

    Raises:
        CheckpointError: a tensor is not all there, or holds a number that is not finite.
    """
    for name, tensor in state.items():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} is no tensor with all its numbers; the file is damaged")
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong):,} of {len(state):,} tensors hold NaN or infinity: {Examples.of(wrong)}; a training "
            "that diverged, or a damaged file: take an earlier checkpoint, or fetch it again"
        )


def _is_finite(tensor: Tensor) -> bool:
    # Types of 8 bits have no isfinite of their own.
    return bool((tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all())


def write_safetensors(weights: Mapping[str, Tensor], path: str | Path, header: dict[str, str]) -> None:
    """Write a safetensors file; it appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with write_whole(path) as temporary:
        try:
            save_file({k: v.contiguous() for k, v in weights.items()}, temporary, metadata=header)
        except SafetensorError as error:
            number = _OS_ERROR.search(str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, as a hex string."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _backbone_only(path: Path) -> BackboneOnlyError:
    return BackboneOnlyError(f"{path}: this is an ImageNet backbone without a detector; training starts from it")


def _is_safetensors(path: Path) -> bool:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return strip_prefix(state), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file, truncated perhaps ({error})") from error


def _read_pickle(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    """The state dict of a torch file, and what stands beside it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error).upper():
            raise CheckpointError(
                f"{path}: holds objects that are not weights, and unpickling them could run code; refused. "
                "If you trust the file, load it in a sandbox with its own project installed and save its "
                "'state_dict' alone."
            ) from error
        # What torch says here is how to read the file all the same, whatever code it runs.
        with path.open("rb") as file:
            head = file.read(16)
        raise CheckpointError(f"{path}: not a checkpoint, or damaged: it starts with {head!r}") from error
    except Exception as error:  # on damaged bytes the unpickler raises whatever its opcodes happen to run into
        raise CheckpointError(f"{path}: not a readable checkpoint, truncated perhaps ({error!r:.120})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dict of weights")
    state = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), content)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    meta = content.get("meta")
    return strip_prefix(tensors), meta if isinstance(meta, Mapping) else {}


def _from_own_file(
    path: Path, state: StateDict, header: Mapping[str, str], categories: Sequence[Category] | None
) -> Checkpoint:
    try:
        said = Header.parse(header)
        checkpoint = Checkpoint(
            weights=as_float32(state),
            variant=said.variant,
            categories=said.categories if categories is None else tuple(categories),
            settings=said.settings,
            source=said.source,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    check_digest(path, state, header, checkpoint.weights, checkpoint.weights_sha256)
    return checkpoint


def check_digest(
    path: Path, state: StateDict, header: Mapping[str, str], weights: StateDict, weights_sha256: str
) -> None:
    """Check that a file of ours holds what its header says.

    Args:
        path: for the message.
        state: as it lies in the file.
        header: of the file.
        weights: `as_float32` of the state.
        weights_sha256: their digest, which is the state's as well where nothing had to be made float32.

    Raises:
        CheckpointError: it holds something else.
    """
    is_as_it_lies = all(weights[name] is tensor for name, tensor in state.items())
    if header.get("weights_sha256") != (weights_sha256 if is_as_it_lies else weights_digest(state)):
        raise CheckpointError(f"{path}: the weights are not those the file was written with; fetch it again")


def as_float32(state: StateDict) -> StateDict:
    """Half-precision files become float32: the reference precision is chosen at load time, not by the file."""
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _categories(meta: Mapping[str, Any], num_classes: int, given: Sequence[Category] | None) -> tuple[Category, ...]:
    if given is not None:
        return tuple(given)
    names = _class_names(meta)
    if names is None and num_classes == len(COCO_CATEGORIES):
        logger.warning(
            "the checkpoint does not name its %d classes: they are taken for COCO's; if they are others, give their "
            "names: maskfleet convert FILE OUT.safetensors --classes NAMES",
            num_classes,
        )
        return COCO_CATEGORIES
    if names is None:
        raise CheckpointError(f"the file does not name its {num_classes} classes: give their names")
    if names == tuple(c.name for c in COCO_CATEGORIES):
        return COCO_CATEGORIES
    return tuple(Category(i + 1, name) for i, name in enumerate(names))


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What ``CLASSES`` (mmdet 2.x) or ``dataset_meta`` (3.x) say, in whatever case; ``None`` where there is neither.

    Raises:
        CheckpointError: they say something that is no list of names.
    """
    below = (value for key, value in meta.items() if str(key).lower() == "dataset_meta" and isinstance(value, Mapping))
    for holder in (meta, *below):
        for key, names in holder.items():
            if str(key).lower() != "classes" or names is None:
                continue
            names = (names,) if isinstance(names, str) else names  # of one class, the comma behind it forgotten
            if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
                raise CheckpointError(f"the file's {key} is no list of class names: give their names")
            return tuple(names)
    return None
