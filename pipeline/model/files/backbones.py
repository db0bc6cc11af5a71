"""Backbones by themselves: ImageNet classifiers that training starts from, and our own file of one.

Our file holds a backbone's weights under the detector's names (``backbone.*``), those alone that a classifier has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.model.architecture import BackboneLayouts, Variant
from pipeline.model.architectures import architecture_named, architecture_of, build
from pipeline.model.files.checkpoints import (
    BACKBONE_FORMAT,
    as_float32,
    check_digest,
    file_sha256,
    is_backbone,
    read_weights,
    recognise,
    weights_digest,
    write_safetensors,
)
from pipeline.model.files.header import CheckpointError, header_object
from pipeline.model.files.state_dict import LayoutError, StateDict, check_keys


@dataclass(frozen=True)
class BackboneWeights:
    """A backbone's weights and where they come from.

    Attributes:
        weights: ``backbone.*`` as in the detector, as far as a classifier has them; float32 on the CPU.
        variant: a detector that has such a backbone; nothing but the backbone's sizes means anything in it.
        source: file name, layout and sha256 of the file they were read from first.
        weights_sha256: `weights_digest` of the weights.
        layouts: of the architecture that it is for.
    """

    weights: StateDict
    variant: Variant
    source: dict[str, Any]
    weights_sha256: str
    layouts: BackboneLayouts[Any]


def read_backbone(path: str | Path) -> BackboneWeights:
    """A backbone from microsoft's ``.pth``, timm's file or our own.

    Raises:
        CheckpointError: the file is missing, damaged, wants to run code, or is no such backbone.
    """
    path = Path(path)
    state, header, _ = read_weights(path)
    try:
        if header.get("format") == BACKBONE_FORMAT:
            layouts = architecture_named(header.get("architecture")).network().layouts
            weights, source = as_float32(state), header_object(header, "source")
        else:
            layouts, layout = recognise(state)
            if not is_backbone(layouts, layout):
                raise LayoutError(f"this is a detector in the {layout} layout, not an ImageNet backbone")
            weights = as_float32(layouts.to_native(state, layout))
            source = {"file": path.name, "layout": layout, "sha256": file_sha256(path)}
        if layouts is None or layouts.backbone is None:
            raise LayoutError("the architecture that it names has no backbone by itself")
        backbone = layouts.backbone
        variant = backbone.infer_variant(weights)
        with torch.device("meta"):
            expected = build(variant).state_dict()
        check_keys({name: tensor for name, tensor in expected.items() if backbone.covers(name)}, weights)
    except (LayoutError, KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    digest = weights_digest(weights)
    if header.get("format") == BACKBONE_FORMAT:
        check_digest(path, state, header, weights, digest)
    return BackboneWeights(weights, variant, source, digest, backbone)


def convert_backbone(path: str | Path, out: str | Path) -> BackboneWeights:
    """Turn any backbone file into our own safetensors; it appears whole or not at all.

    Raises:
        CheckpointError: as `read_backbone`.
    """
    backbone = read_backbone(path)
    sizes = {key: getattr(backbone.variant, key) for key in ("name", *backbone.layouts.sizes)}
    header = {
        "format": BACKBONE_FORMAT,
        "architecture": architecture_of(backbone.variant).name,
        "variant": json.dumps(sizes),
        "source": json.dumps(backbone.source),
        "weights_sha256": backbone.weights_sha256,
    }
    write_safetensors(backbone.weights, out, header)
    return backbone


def load_backbone(path: str | Path, backbone: nn.Module) -> None:
    """Fill a backbone for training from any file that `read_backbone` reads.

    What no classifier has is the detector's own and keeps its initial values; every other weight of the backbone must
    be in the file.

    Raises:
        CheckpointError: as `read_backbone`, and where the sizes are not those of ``backbone``.
    """
    found = read_backbone(path)
    weights = {name.removeprefix("backbone."): tensor for name, tensor in found.weights.items()}
    own = {
        name: tensor for name, tensor in backbone.state_dict().items() if not found.layouts.covers(f"backbone.{name}")
    }
    try:
        check_keys(backbone.state_dict(), weights | own)
    except LayoutError as error:
        raise CheckpointError(f"{path}: {error}") from error
    backbone.load_state_dict(weights | own)
