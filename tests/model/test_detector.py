"""Images of which a number is NaN or infinite are known, and no others."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.detector import all_finite


def maps(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Of two images, as a network has them: channels last, numbers of every size."""
    features = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype) * torch.finfo(dtype).max
    return [features.to(memory_format=torch.channels_last), torch.ones(2, 3, dtype=dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_numbers_of_any_size(dtype: torch.dtype) -> None:
    assert all_finite(maps(dtype)).tolist() == [True, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 2, 3), (1, 2, 3, 4)])
def test_one_number_that_is_none(place: tuple[int, ...], dtype: torch.dtype, value: float) -> None:
    tensors = maps(dtype)
    tensors[0][place] = value
    assert all_finite(tensors).tolist() == [image != place[0] for image in range(2)]
