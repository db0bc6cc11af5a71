"""Names and shapes of state dicts, whatever the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.model.files.state_dict import LayoutError, check_keys, strip_prefix

State = dict[str, Tensor]

PREFIXES = {
    "none": ("", True),
    "DistributedDataParallel": ("module.", True),
    "ModelScope's wrapper": ("model.", True),
    "both": ("module.model.", True),
    "another one": ("net.", False),
}


@pytest.mark.parametrize(("prefix", "is_stripped"), PREFIXES.values(), ids=PREFIXES.keys())
def test_prefixes(prefix: str, is_stripped: bool, small_state: State) -> None:
    stripped = strip_prefix({prefix + name: value for name, value in small_state.items()})
    assert (stripped.keys() == small_state.keys()) == is_stripped


def test_a_prefix_that_some_keys_have_is_kept() -> None:
    state = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    assert strip_prefix(state).keys() == state.keys()
    assert strip_prefix({}) == {}


def test_everything_that_does_not_fit_is_listed() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(4)
    expected = {"kept": a, "lost 1": a, "lost 2": b, "shape 1": a, "shape 2": b}
    given = {"kept": a, "extra 1": b, "extra 2": a, "shape 1": b, "shape 2": torch.zeros(5)}
    with pytest.raises(LayoutError) as error:
        check_keys(expected, given)
    message = str(error.value)
    assert "missing (2):\n  lost 1\n  lost 2" in message
    assert "unexpected (2):\n  extra 1\n  extra 2" in message
    assert "of another shape (2):\n  shape 1 (4,), expected (2, 3)\n  shape 2 (5,), expected (4,)" in message
    assert "kept" not in message
