"""The rows of a run as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.record import Row

GOAL_RATIO, GOAL_RATE = 8.0, 100.0


def summary(rows: Iterable[Row], device: str, small: bool) -> str:
    """Each step's figures, and the goals where their figures are there."""
    lines = ["", f"{device}" + (": the small model, of which no time means anything" if small else ", Swin-B")]
    for row in rows:
        lines.append(f"\n{row['step']}: {row['status']}, {row['seconds']} s")
        lines += [f"  {name:34s} {_cells(value)}" for name, value in row["figures"].items()]
        if row["step"] == "throughput" and not small:
            lines += _goals(row["figures"])
    return "\n".join(lines)


def _cells(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_cells(cell)}" for name, cell in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _goals(figures: dict[str, Any]) -> list[str]:
    rates = {name: cells["images_per_s"] for name, cells in figures.items() if "images_per_s" in cells}
    plain = rates.get("fp32 plain, batch 1")
    if plain is None:
        return []
    best = max(rates, key=lambda name: rates[name])
    return [
        f"  goals: {rates[best]:.1f} images/s ({best}) of {GOAL_RATE:.0f}; "
        f"{rates[best] / plain:.1f}x of {GOAL_RATIO:.0f}x over plain float32, batch 1"
    ]
