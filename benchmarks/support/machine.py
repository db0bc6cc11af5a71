"""One line that says where a figure was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe(device: str = "cpu") -> str:
    """Processor, cores, load, versions, and the GPU where one is used."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}"
    line = f"{name}, {cores} cores, {torch.get_num_threads()} threads, load {load}, torch {torch.__version__}"
    if device == "cuda":
        line += f", {torch.cuda.get_device_name()}"
    return line
