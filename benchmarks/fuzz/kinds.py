"""What can be broken. By the places of classes: a child loads one kind, and not what the others need."""

from __future__ import annotations

KINDS = {
    "images": "benchmarks.fuzz.images:Images",
    "manifests": "benchmarks.fuzz.manifests:Manifests",
    "checkpoints": "benchmarks.fuzz.checkpoints:Checkpoints",
    "outputs": "benchmarks.fuzz.outputs:Outputs",
    "configs": "benchmarks.fuzz.configs:Configs",
}
