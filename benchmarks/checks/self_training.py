"""Whether pseudo-labels help: ``python -m benchmarks.checks.self_training --out self-training``, an hour on two cores.

A teacher learns from a few labelled scenes and annotates many unlabelled ones; the evaluation job chooses the
thresholds; a student starts from the teacher and learns from both. The control starts from the teacher, too, and
learns as long from the labelled scenes alone. All three are measured on scenes that none of them has seen. Every
step is a job as people run it; the commands are printed, and are left out where their results are there already.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.machine import describe
from jobs import annotate, evaluate, render_scenes, train

TRAIN, ANNOTATE, EVALUATE = (f"configs/{name}.yaml" for name in ("self_training", "annotate_laptop", "evaluate"))
# Scenes and seed of each set.
SETS = {"labelled": (100, 11), "unlabelled": (3000, 12), "validation": (100, 13), "held_out": (500, 14)}
MODELS = ("teacher", "control", "student")
# Of a training that starts from another one's model, with a learning rate that rises once more.
FURTHER = {"schedule.epochs": 5, "schedule.steps": [4]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="self-training", type=Path, metavar="DIR")
    parser.add_argument("--precision", default=0.8, type=float, help="that the teacher's labels shall reach")
    args = parser.parse_args(argv)
    bench = Bench(args.out, args.precision)
    bench.render()
    bench.train("beginner", [bench.source("labelled")])
    bench.train("teacher", [bench.source("labelled")], "beginner")
    bench.annotate("teacher", "unlabelled")
    bench.annotate("teacher", "validation")
    bench.evaluate("teacher", "validation")
    bench.train("control", [bench.source("labelled")], "teacher")
    bench.train("student", [bench.source("labelled", weight=1.0), bench.pseudo_labels()], "teacher")
    figures = {}
    for model in MODELS:
        bench.annotate(model, "held_out")
        figures[model] = bench.evaluate(model, "held_out")
    print(
        json.dumps({"machine": describe(), "scenes": {name: n for name, (n, _) in SETS.items()}, "held_out": figures})
    )
    return 0


class Bench:
    """The steps, in one folder."""

    def __init__(self, out: Path, precision: float) -> None:
        self._out, self._precision = out, precision

    def render(self) -> None:
        """All sets of scenes."""
        for name, (count, seed) in SETS.items():
            folder = self._out / name
            if not (folder / "instances.json").exists():
                _run(render_scenes.main, ["--out", str(folder), "--count", str(count), "--seed", str(seed)])

    def source(self, name: str, **more: Any) -> dict[str, Any]:
        """A set of scenes as `data.train` has it."""
        return {"uri": f"{self._out}/{name}/instances.json", "image_root": f"{self._out}/{name}", **more}

    def pseudo_labels(self) -> dict[str, Any]:
        """What the teacher found: sure detections are objects, all others are ignored."""
        return {
            "uri": self._annotations("teacher", "unlabelled"),
            "class_thresholds_file": f"{self._evaluation('teacher', 'validation')}/thresholds.yaml",
            "ignored_score": 0.1,
            "keep_empty": False,
            "weight": 1.0,
        }

    def train(self, name: str, sources: list[dict[str, Any]], start: str | None = None) -> None:
        """Train a model; what is there is gone on with."""
        values: dict[str, Any] = {
            "data.train": sources,
            "data.validation": self.source("validation"),
            "output.uri": str(self._out / name),
        }
        if start is not None:
            values |= {"model.start": self._model(start), "model.sizes": None, **FURTHER}
        _run(train.main, _arguments(TRAIN, values))

    def annotate(self, model: str, name: str) -> None:
        """Annotate a set of scenes with a model."""
        values = {
            "manifest.uri": f"{self._out}/{name}/instances.json",
            "manifest.format": "coco",
            "manifest.image_root": f"{self._out}/{name}",
            "model.checkpoint": self._model(model),
            "model.score_threshold": 0.05,
            "model.batch_size": 8,
            "output.uri": self._annotations(model, name),
        }
        _run(annotate.main, _arguments(ANNOTATE, values))

    def evaluate(self, model: str, name: str) -> dict[str, float]:
        """Evaluate what a model found; its AP."""
        folder = self._evaluation(model, name)
        values = {
            "predictions.uri": self._annotations(model, name),
            "ground_truth.uri": f"{self._out}/{name}/instances.json",
            "analysis.wanted_precision": self._precision,
            "gallery.images_per_class": 0,
            "output.uri": folder,
        }
        _run(evaluate.main, _arguments(EVALUATE, values))
        mmdet = json.loads(Path(folder, "metrics.json").read_text())["mmdet"]
        return {key: round(mmdet[key], 4) for key in ("segm_mAP", "segm_mAP_50", "bbox_mAP")}

    def _model(self, name: str) -> str:
        return f"{self._out}/{name}/best.safetensors"

    def _annotations(self, model: str, name: str) -> str:
        return f"{self._out}/annotations/{model}/{name}"

    def _evaluation(self, model: str, name: str) -> str:
        return f"{self._out}/evaluations/{model}/{name}"


def _arguments(config: str, values: dict[str, Any]) -> list[str]:
    arguments = ["--config", config]
    for key, value in values.items():
        arguments += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return arguments


def _run(job: Callable[[Sequence[str]], int], arguments: list[str]) -> None:
    print(f"python -m {job.__module__} {' '.join(arguments)}", flush=True)
    code = job(arguments)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    sys.exit(main())
