"""Any known checkpoint to this project's safetensors: ``python -m jobs.convert_checkpoint SOURCE OUT.safetensors``.

Reads detectors (official ``.pth``, ModelScope ``.pt``, mmdet 3.x ``.pth``, our own) and ImageNet backbones
(microsoft ``.pth``, timm); a backbone gives a file that training starts from, not one that predicts.

Exit codes: 0 done, 1 trying again may help, 2 the source cannot be used or the file cannot be written, 130 and 143
stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import job_parser
from jobs.ending import ends_in_order, say
from pipeline.errors import UserError
from pipeline.messages.counts import size
from pipeline.messages.examples import Examples
from pipeline.model.architectures import KNOWN_MODELS, architecture_of, build
from pipeline.model.files.class_names import read_categories
from pipeline.model.files.resolve import find_model, resolve_checkpoint
from pipeline.storage.uris import UriText

if TYPE_CHECKING:
    from pipeline.model.files.checkpoints import Checkpoint

# Options by the test setting that they replace.
SETTINGS = {"short_side": int, "long_side": int, "score_threshold": float, "max_detections": int}


@ends_in_order("nothing was written")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _convert(args)
    return 0


def _convert(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the output is a safetensors file; end its name in .safetensors")
    if out.exists() and not args.force:
        raise UserError(f"{out} exists; --force replaces it")
    changes = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    categories = read_categories(args.classes) if args.classes else None
    find_model(UriText(args.source))
    # Here and not above: torch takes seconds to import, and a file that is missing is told before that.
    from pipeline.model.files.checkpoints import BackboneOnlyError, load_checkpoint, save_checkpoint

    source = resolve_checkpoint(UriText(args.source))
    try:
        checkpoint = load_checkpoint(source, categories)
    except BackboneOnlyError:
        if categories or changes:
            raise UserError(f"{source} is a backbone alone: classes and test settings mean nothing for it") from None
        _convert_backbone(source, out)
        return
    checkpoint = replace(checkpoint, settings=checkpoint.settings.changed(changes))
    save_checkpoint(checkpoint, out)
    _report(_detector_facts(checkpoint), out)


def _convert_backbone(source: Path, out: Path) -> None:
    from pipeline.model.files.backbones import convert_backbone

    backbone = convert_backbone(source, out)
    facts = {
        "kind": "ImageNet backbone without a detector: training starts from it, it predicts nothing",
        "variant": backbone.variant.sizes(),
        "parameters": _count(tensor.numel() for tensor in backbone.weights.values()),
        "source": _source(backbone.source),
        "weights": f"sha256 {backbone.weights_sha256}",
    }
    _report(facts, out)


def _detector_facts(checkpoint: Checkpoint) -> dict[str, str]:
    import torch

    with torch.device("meta"):
        parameters = build(checkpoint.variant).parameters()
    names = [category.name for category in checkpoint.categories]
    return {
        "kind": architecture_of(checkpoint.variant).title,
        "variant": checkpoint.variant.sizes(),
        "classes": f"{len(names)} ({Examples.of(names)})",
        "parameters": _count(p.numel() for p in parameters),
        "settings": ", ".join(f"{name} {value}" for name, value in asdict(checkpoint.settings).items()),
        "source": _source(checkpoint.source),
        "weights": f"sha256 {checkpoint.weights_sha256}",
    }


def _source(source: dict[str, Any]) -> str:
    """A file of our own keeps the source that it was first converted from."""
    return ", ".join(f"{key} {_figures(value)}" for key, value in source.items()) or "not recorded"


def _figures(value: Any) -> str:
    """Of the figures of a validation the two that tell how good a model is; the file keeps them all."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{name} {figure:.3f}" if isinstance(figure, float) else f"{name} {figure}"
        for name, figure in value.items()
        if name.endswith("_mAP") or not isinstance(figure, float)
    )


def _count(sizes: Iterable[int]) -> str:
    return f"{sum(sizes):,}"


def _report(facts: dict[str, str], out: Path) -> None:
    for name, value in facts.items():
        say(f"{name + ':':12}{value}")
    say(f"{'written:':12}{out} ({size(out.stat().st_size)})")


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("convert_checkpoint", __doc__)
    parser.add_argument(
        "source", metavar="SOURCE", help=f"a file, or one of: {', '.join(KNOWN_MODELS)} (downloaded once)"
    )
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--classes", metavar="FILE", help="names, one a line, or a COCO JSON file")
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"the file's {name.replace('_', ' ')}")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


if __name__ == "__main__":
    sys.exit(main())
