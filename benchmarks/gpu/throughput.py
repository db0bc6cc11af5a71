"""Images per second: of full batches of one size, by setting, and of a stream of many sizes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.bench import Bench
from benchmarks.support.timing import PartTimes, now, timed

if TYPE_CHECKING:
    from pipeline.model.predictor import Predictor

_BATCHES = 3  # in a call, so that one is on its way while another computes
_STREAM = 512
_BLOCK = 64  # as many as the annotate job hands over at once


def throughput(bench: Bench) -> None:
    """Plain float32 one by one is what the rest is a multiple of, so it comes first; the setting to use comes next."""
    _rates(bench, "fp32 plain", bench.predictor("fp32", plain=True), (1,))
    _rates(bench, "bf16 graphs", bench.predictor("bf16", cuda_graphs=True), bench.batches)
    _rates(bench, "bf16", bench.predictor("bf16", cuda_graphs=False), bench.batches, by_part=True)
    _rates(bench, "fp32", bench.predictor("fp32", cuda_graphs=False), (8, 1), by_part=True)


def _rates(bench: Bench, name: str, predictor: Predictor, batches: tuple[int, ...], by_part: bool = False) -> None:
    for batch in batches:
        pictures = bench.pictures(batch) * _BATCHES

        def once(predictor: Predictor = predictor, pictures: list[Any] = pictures, batch: int = batch) -> Any:
            return predictor.predict(pictures, batch)

        bench.free()
        times = timed(once, bench.device, bench.rounds)
        cells: dict[str, Any] = {
            "images_per_s": round(len(pictures) / times.median_s, 2),
            "best": round(len(pictures) / times.best_s, 2),
            "ms_an_image": round(times.median_s / len(pictures) * 1e3, 2),
            "peak_GiB": bench.peak_gib(),
        }
        if by_part:
            with PartTimes(predictor.detector, bench.device) as parts:
                once()
            cells |= {f"{part}_ms": round(s / len(pictures) * 1e3, 2) for part, s in parts.seconds.items()}
        bench.report(f"{name}, batch {batch}", cells)
    bench.free()


def stream(bench: Bench) -> None:
    """The whole way, from arrays to masks: with all that comes once, without it, and block by block."""
    from benchmarks.support.textures import coco_like_sizes, textured_pictures
    from pipeline.model.preprocess import input_shape

    sizes = coco_like_sizes(8 if bench.small else _STREAM)
    predictor = bench.predictor("bf16")
    batch = max(bench.batches)
    shapes = Counter(input_shape(size, predictor.settings) for size in sizes)
    calls = sum(-(-count // batch) for count in shapes.values())
    bench.report("stream", {"pictures": len(sizes), "shapes": len(shapes), "batches": calls, "most a batch": batch})
    # Few contents: the work does not depend on them, and making pictures takes longer than segmenting them.
    by_size = dict(zip(shapes_of := sorted(set(sizes)), textured_pictures(shapes_of), strict=True))
    pictures = [by_size[size] for size in sizes]
    for name, block in (("first pass", _STREAM), ("second pass", _STREAM), (f"in blocks of {_BLOCK}", _BLOCK)):
        start, found = now(bench.device), 0
        for i in range(0, len(pictures), block):
            found += sum(len(one) for one in predictor.predict(pictures[i : i + block], batch))
        seconds = now(bench.device) - start
        bench.report(name, {"images_per_s": round(len(pictures) / seconds, 2), "detections": found})
    bench.report("peak GiB", bench.peak_gib())
