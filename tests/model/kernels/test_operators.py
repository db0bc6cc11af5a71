"""What makes the kernels operators: sound to PyTorch's own checks, one node in a graph that fits all shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.model.kernels.nms import nms_groups
from pipeline.model.kernels.resize import resize_normalise
from pipeline.model.kernels.roi_align import roi_align_levels
from tests.model.kernels.cases import STRIDES, boxes_of_all_kinds, crowd, maps, packed, pictures_of


def roi_align_case(size: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    # No two sizes of one case are equal: a graph made from it would be one for equal sizes.
    boxes, levels, images = (x[: 21 * size] for x in boxes_of_all_kinds())
    features = [feature.to(dtype) for feature in maps(size, size=(96 * size, 96 + 64 * size))]
    return features, boxes, levels, images, 7, list(STRIDES)


def roi_align_half_case(size: int) -> tuple[Any, ...]:
    return roi_align_case(size, torch.bfloat16)


def nms_case(size: int) -> tuple[Any, ...]:
    return *crowd(size, 20 * size, seed=0), 0.5


def resize_case(size: int) -> tuple[Any, ...]:
    return *packed(pictures_of([(5 * size, 9)] * size), [(16, 18)] * size), 32, 32 * size


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Any, ...]]]] = {
    "roi_align_levels": (roi_align_levels, roi_align_case),
    "roi_align_levels in half precision": (roi_align_levels, roi_align_half_case),
    "nms_groups": (nms_groups, nms_case),
    "resize_normalise": (resize_normalise, resize_case),
}


@pytest.mark.parametrize(("operator", "case"), CASES.values(), ids=CASES.keys())
def test_operator_is_sound(operator: Callable[..., Tensor], case: Callable[[int], tuple[Any, ...]]) -> None:
    torch.library.opcheck(operator, case(2))


@pytest.mark.parametrize(("operator", "case"), CASES.values(), ids=CASES.keys())
def test_one_graph_fits_all_shapes(operator: Callable[..., Tensor], case: Callable[[int], tuple[Any, ...]]) -> None:
    torch._dynamo.reset()  # cases share the function that is compiled
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda *arguments: operator(*arguments) + 0, backend=keep, fullgraph=True, dynamic=True)
    for size in (2, 3, 4):
        assert torch.equal(compiled(*case(size)), operator(*case(size)) + 0)
    assert len(graphs) == 1
