"""Distances between two histograms, and how sure they are.

With shares p and q of N bins:

- Population stability index (Siddiqi, *Credit Risk Scorecards*, 2006): ``sum (p - q) ln(p / q)``, the symmetric
  Kullback-Leibler divergence. A bin that one side has not would make it infinite, so to each share is added what
  `SMOOTHING` of a count is on the smaller side: the same on both, so that equal shares differ by nothing, however many
  counts each side has. By convention 0.1 is a small change and 0.25 a large one.
- Jensen-Shannon distance (Endres and Schindelin, 2003): the root of ``H((p + q) / 2) - (H(p) + H(q)) / 2`` in bits: a
  metric of 0 to 1.

Where one side has no count at all, both are NaN: there is nothing to compare.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SMOOTHING = 0.5
Floats = NDArray[np.float64]


def psi(before: Floats, after: Floats) -> Floats:
    """Population stability index along the last axis.

    Args:
        before, after: [..., N] counts.

    Returns:
        [...] at least 0; NaN where a side is empty.
    """
    smaller = np.minimum(*(each.sum(axis=-1, keepdims=True) for each in (before, after)))
    added = np.divide(SMOOTHING, smaller, out=np.ones_like(smaller), where=smaller > 0)
    p, q = (_shares(_shares(each) + added) for each in (before, after))
    found: Floats = ((p - q) * np.log(p / q)).sum(axis=-1)
    return np.where(_both(before, after), found, np.nan)


def js_distance(before: Floats, after: Floats) -> Floats:
    """Jensen-Shannon distance along the last axis.

    Args:
        before, after: [..., N] counts.

    Returns:
        [...] from 0 to 1; NaN where a side is empty.
    """
    p, q = _shares(before), _shares(after)
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.where(_both(before, after), np.sqrt(np.clip(divergence, 0.0, 1.0)), np.nan)


def two_proportions(before: Floats, num_before: float, after: Floats, num_after: float) -> Floats:
    """p-values of the two-sided z-test that two shares are one (pooled variance).

    Args:
        before, after: [K] how many of these.
        num_before, num_after: of so many, each.

    Returns:
        [K]; 1 where nothing can differ.
    """
    if not num_before or not num_after:
        return np.ones(len(before))
    pooled = (before + after) / (num_before + num_after)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / num_before + 1 / num_after))
    difference = np.abs(before / num_before - after / num_after)
    z = np.divide(difference, deviation, out=np.zeros_like(difference), where=deviation > 0)
    return np.array([math.erfc(value / math.sqrt(2)) for value in z.tolist()])


def benjamini_hochberg(p_values: Floats) -> Floats:
    """p-values corrected for how many there are (Benjamini and Hochberg, 1995): the share of false alarms among all
    classes of no higher value.

    Args:
        p_values: [K].
    """
    order = np.argsort(p_values)
    ranked = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    corrected = np.empty_like(ranked)
    corrected[order] = np.minimum(1.0, np.minimum.accumulate(ranked[::-1])[::-1])
    return corrected


def _shares(counts: Floats) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


def _entropy(shares: Floats) -> Floats:
    logs = np.log2(shares, out=np.zeros(shares.shape), where=shares > 0)
    found: Floats = -(shares * logs).sum(axis=-1)
    return found


def _both(before: Floats, after: Floats) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (before.sum(axis=-1) > 0) & (after.sum(axis=-1) > 0)
    return found
