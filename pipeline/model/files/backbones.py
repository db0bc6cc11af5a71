"""Backbones by themselves: ImageNet classifiers that training starts from, and our own file of one.

Our file holds a backbone's weights under the detector's names (``backbone.*``). The four output norms are not
in it: no classifier has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.model.files.checkpoints import (
    BACKBONE_FORMAT,
    CheckpointError,
    as_float32,
    file_sha256,
    read_weights,
    weights_digest,
    write_safetensors,
)
from pipeline.model.files.layouts import BACKBONE_LAYOUTS, LayoutError, StateDict, check_keys, detect_layout, to_native
from pipeline.model.swin import SwinBackbone
from pipeline.model.variants import VARIANTS, Variant

_SIZES = ("embed_dim", "depths", "num_heads", "window_size")


@dataclass(frozen=True)
class BackboneWeights:
    """A backbone's weights and where they come from.

    Attributes:
        weights: ``backbone.*`` as in the detector, without ``backbone.norms.*``; float32 on the CPU.
        variant: a detector that has such a backbone; nothing but the backbone's sizes means anything in it.
        source: file name, layout and sha256 of the file they were read from first.
        weights_sha256: `weights_digest` of the weights.
    """

    weights: StateDict
    variant: Variant
    source: dict[str, Any]
    weights_sha256: str


def read_backbone(path: str | Path) -> BackboneWeights:
    """A backbone from microsoft's ``.pth``, timm's file or our own.

    Raises:
        CheckpointError: the file is missing, damaged, wants to run code, or is no such backbone.
    """
    path = Path(path)
    state, header, _ = read_weights(path)
    try:
        if header.get("format") == BACKBONE_FORMAT:
            weights, source = state, json.loads(header["source"])
        else:
            layout = detect_layout(state)
            if layout not in BACKBONE_LAYOUTS:
                raise LayoutError(f"this is a detector in the {layout} layout, not an ImageNet backbone")
            weights = as_float32(to_native(state, layout))
            source = {"file": path.name, "layout": layout, "sha256": file_sha256(path)}
        variant = _infer_sizes(weights)
        with torch.device("meta"):
            expected = SwinBackbone(variant).state_dict()
        check_keys({f"backbone.{k}": v for k, v in expected.items() if not k.startswith("norms.")}, weights)
    except (LayoutError, KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    digest = weights_digest(weights)
    if header.get("weights_sha256", digest) != digest:
        raise CheckpointError(f"{path}: the weights are not those the file was written with; fetch it again")
    return BackboneWeights(weights, variant, source, digest)


def convert_backbone(path: str | Path, out: str | Path) -> BackboneWeights:
    """Turn any backbone file into our own safetensors; it appears whole or not at all.

    Raises:
        CheckpointError: as `read_backbone`.
    """
    backbone = read_backbone(path)
    sizes = {key: getattr(backbone.variant, key) for key in ("name", *_SIZES)}
    header = {
        "format": BACKBONE_FORMAT,
        "variant": json.dumps(sizes),
        "source": json.dumps(backbone.source),
        "weights_sha256": backbone.weights_sha256,
    }
    write_safetensors(backbone.weights, out, header)
    return backbone


def load_backbone(path: str | Path, backbone: SwinBackbone) -> None:
    """Fill a backbone for training from any file that `read_backbone` reads.

    The four output norms are the detector's own and keep their initial values; every other weight of the
    backbone must be in the file.

    Raises:
        CheckpointError: as `read_backbone`, and where the sizes are not those of ``backbone``.
    """
    weights = {k.removeprefix("backbone."): v for k, v in read_backbone(path).weights.items()}
    own_norms = {k: v for k, v in backbone.state_dict().items() if k.startswith("norms.")}
    try:
        check_keys(backbone.state_dict(), weights | own_norms)
    except LayoutError as error:
        raise CheckpointError(f"{path}: {error}") from error
    backbone.load_state_dict(weights | own_norms)


def _infer_sizes(weights: StateDict) -> Variant:
    """Read off the shapes; the rest of the variant keeps its defaults."""
    embedding = "backbone.patch_embed.proj.weight"
    tables = [f"backbone.stages.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)]
    for key in (embedding, *tables):
        if key not in weights:
            raise LayoutError(f"the weights lack {key!r}: not a Swin backbone, or only a part of one")
    depths = [len({k.split(".")[4] for k in weights if k.startswith(f"backbone.stages.{i}.blocks.")}) for i in range(4)]
    heads = [weights[table].shape[1] for table in tables]
    found = Variant(
        name="custom",
        embed_dim=weights[embedding].shape[0],
        depths=(depths[0], depths[1], depths[2], depths[3]),
        num_heads=(heads[0], heads[1], heads[2], heads[3]),
        window_size=(round(weights[tables[0]].shape[0] ** 0.5) + 1) // 2,
    )
    same = (known for known in VARIANTS.values() if all(getattr(known, k) == getattr(found, k) for k in _SIZES))
    return next(same, found)
