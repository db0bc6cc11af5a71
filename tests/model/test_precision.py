"""Half precision: what is held and computed in which type, and how far detections move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import PRECISIONS, Predictor, load_model
from pipeline.model.speed import SpeedOptions
from testing.small_model import picture
from tests.model.compare import match
from tests.model.golden_cases import CASES, golden

# Of the published architecture: what is ranked, thresholded, or moves a box.
LAST_LAYERS = (
    "rpn.objectness",
    "rpn.deltas",
    *(f"box_heads.stages.{i}.{layer}" for i in range(3) for layer in ("classify", "regress")),
    *(f"mask_heads.stages.{i}.predict" for i in range(3)),
)

HEADS = [f"{kind}_heads.stages.{i}" for kind in ("box", "mask") for i in range(3)]
PLAIN_LINEAR = SpeedOptions(packed_linear=False)  # packed ones keep no parameters
SCORE = 0.01  # random weights are sure of little


def half(checkpoint: Checkpoint, speed: SpeedOptions | None = None) -> Predictor:
    return load_model(checkpoint, "cpu", "bf16", speed=speed)


# ------------------------------------------------------------------------------------------------------- what is held
def test_all_but_the_last_layers_are_held_in_bf16(small_checkpoint: Checkpoint) -> None:
    detector = half(small_checkpoint, PLAIN_LINEAR).detector
    exact = {name for name, tensor in floats(detector) if tensor.dtype == torch.float32}
    assert exact == {f"{layer}.{kind}" for layer in LAST_LAYERS for kind in ("weight", "bias")}
    assert {tensor.dtype for name, tensor in floats(detector) if name not in exact} == {torch.bfloat16}


def test_weights_are_those_of_float32_rounded_once(small_checkpoint: Checkpoint) -> None:
    """So norms are folded before they are rounded."""
    exact, rounded = (load_model(small_checkpoint, "cpu", p, speed=PLAIN_LINEAR).detector for p in PRECISIONS)
    expected, found = dict(exact.named_parameters()), dict(rounded.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


def test_norms_that_are_not_folded_stay_float32(small_checkpoint: Checkpoint) -> None:
    predictor = half(small_checkpoint, SpeedOptions.none())
    norms = [module for module in predictor.detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {tensor.dtype for norm in norms for _, tensor in floats(norm)} == {torch.float32}
    assert len(predictor.predict([picture(60, 90)])[0]) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loading_leaves_the_checkpoint_as_it_is(precision: str, small_checkpoint: Checkpoint) -> None:
    before = {name: weight.clone() for name, weight in small_checkpoint.weights.items()}
    load_model(small_checkpoint, "cpu", precision).predict([picture(20, 30)])
    for name, weight in small_checkpoint.weights.items():
        assert weight.dtype == before[name].dtype
        assert torch.equal(before[name], weight), name


def floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers that are no counters."""
    return [
        (name, tensor)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if tensor.is_floating_point()
    ]


# --------------------------------------------------------------------------------------------------- what is computed
class WeightCasts(TorchDispatchMode):
    """Counts operations that give a weight, or a view of one, in another type."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.partition("::")[2] in ("_to_copy", "to"):
            weight = args[0]
            self.count += weight.untyped_storage().data_ptr() in self._weights and out.dtype != weight.dtype
        return out


@contextmanager
def watched(detector: nn.Module, look: Callable[[str, tuple[Any, ...], Any], None]) -> Iterator[None]:
    """``look`` gets the name, the inputs and the outputs of every module that is called."""
    hooks = [
        module.register_forward_hook(lambda _, inputs, outputs, name=name: look(name, inputs, outputs))
        for name, module in detector.named_modules()
    ]
    yield
    for hook in hooks:
        hook.remove()


def test_no_weight_is_cast_and_autocast_is_off(small_checkpoint: Checkpoint) -> None:
    predictor = half(small_checkpoint)
    assert casts(predictor) == 0
    with torch.autocast("cpu", torch.bfloat16):  # the counter counts
        assert casts(load_model(small_checkpoint, "cpu", speed=PLAIN_LINEAR)) > 20

    def look(name: str, inputs: tuple[Any, ...], outputs: Any) -> None:
        assert not torch.is_autocast_enabled("cpu"), name

    with watched(predictor.detector, look):
        predictor.predict([picture(60, 90)])


def casts(predictor: Predictor) -> int:
    with WeightCasts(predictor.detector) as mode:
        predictor.predict([picture(60, 90)])
    return mode.count


def test_maps_are_bf16_and_what_is_ranked_is_float32(small_checkpoint: Checkpoint) -> None:
    predictor = half(small_checkpoint)
    seen: dict[str, set[torch.dtype]] = {}

    def look(name: str, inputs: tuple[Any, ...], outputs: Any) -> None:
        tensors = [x for x in tree_leaves((inputs, outputs)) if isinstance(x, Tensor) and x.is_floating_point()]
        seen.setdefault(name, set()).update(x.dtype for x in tensors)

    with watched(predictor.detector, look):
        (found,) = predictor.predict([picture(60, 90)])
    called = {name for name in LAST_LAYERS if not name.endswith("predict")}  # of `predict` the weights are taken alone
    assert called <= seen.keys()
    for name, module in predictor.detector.named_modules():
        if name in called:
            assert seen[name] == {torch.float32}, name
        elif not list(module.children()) and name in seen and name != "backbone.patch_embed":
            assert seen[name] == {torch.bfloat16}, name
    assert (found.boxes.dtype, found.scores.dtype, found.masks.dtype) == (np.float32,) * 3


# --------------------------------------------------------------------------------------------- how far detections move
@dataclass
class Run:
    """A golden case in one precision: the detector, inputs and outputs of its modules, call by call, and detections."""

    detector: nn.Module
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    found: Detections | None = None


@pytest.fixture(scope="module")
def in_both(golden_checkpoint: Checkpoint) -> dict[str, tuple[Run, Run]]:
    """Each golden case in float32 and in bf16."""
    exact, rounded = ([*golden_runs(golden_checkpoint, precision)] for precision in PRECISIONS)
    return dict(zip(CASES, zip(exact, rounded, strict=True), strict=True))


def golden_runs(checkpoint: Checkpoint, precision: str) -> Iterator[Run]:
    """Fewer proposals than in the published settings: the box heads' time is proportional to them."""
    settings = replace(checkpoint.settings, proposals=200, proposals_per_level=200, score_threshold=SCORE)
    predictor = load_model(checkpoint, "cpu", precision, settings)
    for case in CASES:
        run = Run(predictor.detector)

        def look(name: str, inputs: tuple[Any, ...], outputs: Any, run: Run = run) -> None:
            if name in ("neck", "rpn.objectness", *HEADS):
                run.inputs.setdefault(name, []).append(inputs)
                run.outputs.setdefault(name, []).append(outputs)

        with watched(predictor.detector, look):
            (run.found,) = predictor.predict([golden(case).image])
        yield run


def error(exact: Tensor, rounded: Tensor) -> float:
    """Root mean square of the difference, in standard deviations."""
    return float((rounded.float() - exact).square().mean().sqrt() / exact.std())


def test_objectness_has_no_ties(in_both: dict[str, tuple[Run, Run]]) -> None:
    """In bf16 more than half of the best thousand would equal another, and the device would choose among them."""
    for _, run in in_both.values():
        best = run.outputs["rpn.objectness"][0].flatten().topk(1000).values
        assert len(best.unique()) > 990
        assert len(best.bfloat16().unique()) < 500


@pytest.mark.parametrize("case", CASES)
def test_pyramids_of_golden_weights(case: str, in_both: dict[str, tuple[Run, Run]]) -> None:
    (exact,), (rounded,) = (run.outputs["neck"] for run in in_both[case])
    errors = [error(a, b) for a, b in zip(exact, rounded, strict=True)]
    print(*(f"{e:.4f}" for e in errors))
    assert all(0 < e < 0.03 for e in errors)


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_golden_weights_on_the_same_rois(name: str, in_both: dict[str, tuple[Run, Run]]) -> None:
    exact, rounded = in_both[CASES[0]]
    pooled, *labels = exact.inputs[name][0]
    pooled = pooled.bfloat16()
    with torch.inference_mode():
        expected = exact.detector.get_submodule(name)(pooled.float(), *labels)
        found = rounded.detector.get_submodule(name)(pooled, *labels)
    errors = [error(a, b) for a, b in zip(tree_leaves(expected), tree_leaves(found), strict=True)]
    print(*(f"{e:.4f}" for e in errors))
    assert all(0 < e < 0.02 for e in errors)


def test_detections_of_golden_weights(in_both: dict[str, tuple[Run, Run]]) -> None:
    """Random weights amplify rounding more than trained ones do, so the bounds are wide; tests.benchmarks judges AP."""
    sure = matched = 0
    box_px, scores, masks = [], [], []
    for exact, rounded in ((a.found, b.found) for a, b in in_both.values()):
        assert exact is not None
        assert rounded is not None
        # What is sure of itself in one precision is there in the other, perhaps less sure.
        for one, other in ((exact, rounded), (rounded, exact)):
            best = one.where(one.scores > 2 * SCORE)
            sure += len(best)
            matched += len(match(best, other, min_iou=0.5, max_score=1))
        rows, columns = map(list, zip(*match(exact, rounded, min_iou=0.5, max_score=1), strict=True))
        box_px += np.abs(exact.boxes[rows] - rounded.boxes[columns]).max(1).tolist()
        scores += np.abs(exact.scores[rows] - rounded.scores[columns]).tolist()
        masks += np.abs(exact.masks[rows] - rounded.masks[columns]).mean((1, 2)).tolist()
    print(
        f"{matched} of {sure} matched; medians: box {np.median(box_px):.2f} px, score {np.median(scores):.4f}, ", end=""
    )
    print(f"mask {np.median(masks):.4f}")
    assert matched > 0.8 * sure
    assert np.median(box_px) < 1.5
    assert np.median(scores) < 0.01
    assert np.median(masks) < 0.03
