"""What the machine is, and what the things cost that models are made of."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.bench import Bench
from benchmarks.support.timing import now, timed

_PACKAGES = ("torch", "torchvision", "triton", "timm", "numpy", "pillow", "pyarrow", "safetensors", "pydantic")
# What other commands need, and this one does without.
_ABSENT = ("ray", "pycocotools", "faster_coco_eval", "s3fs", "obstore", "pooch")


def machine(bench: Bench) -> None:
    """Versions first: what follows may fail."""
    bench.report("python", platform.python_version())
    for name in _PACKAGES:
        bench.report(name, _version(name))
    bench.report("lacking", [name for name in _ABSENT if importlib.util.find_spec(name) is None])
    bench.report("cores", os.cpu_count())
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        bench.report("device", {"name": properties.name, "GiB": round(properties.total_memory / 2**30, 1)})
        bench.report("cuda", {"runtime": torch.version.cuda, "cudnn": torch.backends.cudnn.version()})
    _copies(bench)
    _products(bench)
    _launches(bench)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not there"


def _seconds(bench: Bench, once: Callable[[], object]) -> float:
    return timed(once, bench.device, bench.rounds).best_s


def _copies(bench: Bench) -> None:
    count = 1 << (20 if bench.small else 32)
    source = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.report("copy, TB/s read and written", 2 * count / _seconds(bench, lambda: target.copy_(source)) / 1e12)
    if bench.device.type != "cuda":
        return
    part = count >> 3
    for kind, host in {"pinned": torch.empty(part, dtype=torch.uint8, pin_memory=True), "pageable": None}.items():
        memory = torch.zeros(part, dtype=torch.uint8) if host is None else host
        there = _seconds(bench, lambda memory=memory: target[:part].copy_(memory, non_blocking=True))  # type: ignore[misc]
        back = _seconds(bench, lambda memory=memory: memory.copy_(target[:part], non_blocking=True))  # type: ignore[misc]
        bench.report(f"to and from {kind} memory, GB/s", [part / there / 1e9, part / back / 1e9])


def _products(bench: Bench) -> None:
    side = 256 if bench.small else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        bench.report(f"product of {side}, {name}, TFLOP/s", 2 * side**3 / _seconds(bench, lambda: a @ b) / 1e12)  # noqa: B023


def _launches(bench: Bench) -> None:
    """Of an operator that does next to nothing: the host's time, and with the device's; then a wait for a number."""
    x, count = torch.zeros(1, device=bench.device), 100 if bench.small else 2000

    def launches() -> float:
        start = now(bench.device)
        for _ in range(count):
            x.add_(1)
        return now(bench.device) - start

    launches()
    bench.report("small operator, us", min(launches() for _ in range(3)) / count * 1e6)
    bench.report("wait for a number, us", _seconds(bench, lambda: x.item()) * 1e6)


def decode(bench: Bench) -> None:
    """JPEGs of a photograph's size, images per second; the largest difference of a pixel."""
    from benchmarks.support.textures import coco_like_sizes, textured_pictures

    count = 8 if bench.small else 256
    files = []
    for picture in textured_pictures(coco_like_sizes(min(count, 32))):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "jpeg", quality=90)
        files.append(buffer.getvalue())
    files = (files * count)[:count]

    def pixels(file: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(file)) as image:
            return np.asarray(image.convert("RGB"))

    for threads in (1, 8, 16):
        with ThreadPoolExecutor(threads) as pool:
            seconds = timed(lambda pool=pool: list(pool.map(pixels, files)), torch.device("cpu"), 2, warm_up=1).best_s  # type: ignore[misc]
        bench.report(f"Pillow on {threads} threads, images/s", count / seconds)
    if bench.device.type != "cuda":
        return
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]

    def on_device() -> list[torch.Tensor]:
        return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=bench.device)

    bench.report("nvJPEG, images/s", count / _seconds(bench, on_device))
    apart = [
        np.abs(image.permute(1, 2, 0).cpu().numpy().astype(int) - pixels(file)).max()
        for image, file in zip(on_device()[:16], files, strict=False)
    ]
    bench.report("nvJPEG, largest difference of a pixel", int(max(apart)))
