"""Annotate and evaluate in two minutes, on this machine: ``python -m jobs.demo --out demo-output``.

Renders scenes that the model has never seen (and damages one file), annotates them through Ray into Parquet, compares
that with what was rendered, and draws what was found: the jobs, configs and outputs of a real run. The model is a small
one that the training job made of such scenes; docs/training.md has the command. Exit codes are those of the jobs: 0
done, 1 failed, 2 bad input, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import annotate, evaluate
from jobs.arguments import job_parser, typed
from jobs.ending import ends_in_order, say
from pipeline.errors import UserError
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import named

if TYPE_CHECKING:
    import numpy as np

MODEL = Path(__file__).with_name("demo_model.safetensors")
NUM_SCENES = 200
DAMAGED = NUM_SCENES - 1  # the last one
SEED = 1000  # no scene of it was seen in training
_GRID = (3, 4)
_CELL = (320, 320)
_SHOWN_SCORE = 0.5


@ends_in_order("run it again")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns an exit code."""
    parser = job_parser("demo", __doc__)
    parser.add_argument("--out", default="demo-output", metavar="DIR")
    out = Path(parser.parse_args(argv).out)
    from pipeline.synthetic.scenes import holds_scenes, is_taken, write_scenes

    scenes, results, evaluation = out / "scenes", out / "annotations", out / "evaluation"
    if is_taken(out) and not holds_scenes(scenes):
        raise UserError(f"{out} is not empty, and not of an earlier demo: give --out another")
    truth = write_scenes(scenes, NUM_SCENES, SEED)
    damaged = scenes / f"images/{DAMAGED:06d}.jpg"
    with named(damaged):
        damaged.write_bytes(damaged.read_bytes()[:1000])
    configs: dict[str, dict[str, Any]] = {
        "annotate": {
            "manifest": {"uri": str(truth), "format": "coco", "image_root": str(scenes)},
            "model": {"checkpoint": str(MODEL), "batch_size": 8},
            "output": {"uri": str(results), "max_failed_fraction": 0.1},
            "log_interval_s": 10,
        },
        "evaluate": {
            "predictions": {"uri": str(results)},
            # The damaged picture has no result, and would count as one on which nothing was found.
            "ground_truth": {"uri": str(truth), "images": "annotated"},
            "gallery": {"image_root": str(scenes)},
            "output": {"uri": str(evaluation)},
        },
    }
    # Here and not above: Ray takes seconds to import, and what is wrong before is told before that.
    from PIL import Image

    from pipeline.cluster.connect import connect
    from pipeline.evaluate.run import METRICS

    with connect(None):
        for job in (annotate, evaluate):
            code = job.main(["--config", _written(out, job.__name__.rpartition(".")[2], configs)])
            if code:
                return code
    sheet = out / "contact_sheet.png"
    with named(sheet):
        Image.fromarray(_contact_sheet(results)).save(sheet)
    metrics = json.loads((evaluation / METRICS).read_text())["mmdet"]
    say(
        f"\nOn {NUM_SCENES - 1} scenes that the model has never seen: "
        f"mask AP {metrics['segm_mAP']:.3f}, box AP {metrics['bbox_mAP']:.3f}\n\n"
        f"Scenes         {scenes} (one picture is damaged: its row says so)\n"
        f"Configs        {out / 'annotate.yaml'}, {out / 'evaluate.yaml'}\n"
        f"Annotations    {results / 'data'} (Parquet), {results / 'run.json'}\n"
        f"Their summary  {results / 'summary.html'}\n"
        f"Report         {evaluation / 'report.html'}\n"
        f"Contact sheet  {sheet}\n"
        "Run it again: nothing is left to annotate, and it says so. On your own pictures:\n"
        f"  {typed('predict')} YOUR_IMAGES --model swin_b_coco --out predictions"
    )
    return 0


def _written(out: Path, job: str, configs: dict[str, dict[str, Any]]) -> str:
    import yaml

    path = out / f"{job}.yaml"
    with named(path):
        path.write_text(yaml.safe_dump(configs[job], sort_keys=False))
    say(f"{typed(job)} --config {path}")
    return str(path)


def _contact_sheet(results: Path) -> np.ndarray:
    """The first rows of the output, drawn on their pictures."""
    from pipeline.annotations.failure import ImageFailure
    from pipeline.annotations.pictures import PictureSource
    from pipeline.annotations.rows import OutputRows
    from pipeline.drawing.draw import DrawOptions, grid
    from pipeline.drawing.rows import draw_rows

    rows, columns = _GRID
    ids = [str(number) for number in range(1, rows * columns + 1)]
    source = PictureSource()
    drawn = draw_rows(OutputRows(Uri(str(results))).by_id(ids), source, DrawOptions(min_score=_SHOWN_SCORE))
    pictures = [row.picture for row in drawn if not isinstance(row.picture, ImageFailure)]
    return grid(pictures, columns, _CELL, ids)


if __name__ == "__main__":
    sys.exit(main())
