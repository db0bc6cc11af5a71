"""State dicts as files hold them: whether names and shapes are those of a model. No file is read here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.errors import UserError

StateDict = dict[str, Tensor]


class LayoutError(UserError):
    """The names or shapes of a state dict are not those of a model we know."""


def strip_prefix(state: Mapping[str, Tensor]) -> StateDict:
    """Without ``module.`` (DistributedDataParallel) or ``model.`` (ModelScope's wrapper) where all keys have it."""
    for prefix in ("module.", "model."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return dict(state)


def check_keys(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Every key there, none too many, every shape right, and real numbers where the model computes with them.

    Raises:
        LayoutError: listing all that is missing, unexpected, of another shape, or no real numbers.
    """
    missing = sorted(set(expected) - set(given))
    unexpected = sorted(set(given) - set(expected))
    misshapen = [
        f"{key} {tuple(given[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(given))
        if given[key].shape != expected[key].shape
    ]
    # Quantised weights, say, whose scales are lost: as they stand they would be other weights.
    no_reals = [
        f"{key} {str(given[key].dtype).removeprefix('torch.')}"
        for key in sorted(set(expected) & set(given))
        if expected[key].is_floating_point() and not given[key].is_floating_point()
    ]
    problems = [
        f"{title} ({len(keys)}):\n  " + "\n  ".join(keys)
        for title, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("no floating-point numbers", no_reals),
        )
        if keys
    ]
    if problems:
        raise LayoutError("the weights do not fit the model\n" + "\n".join(problems))
