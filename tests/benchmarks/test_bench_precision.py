"""What half precision costs in AP is bounded, on the model and the scenes of the demo."""

from __future__ import annotations

import pytest

from benchmarks.bench_precision import measure

pytestmark = pytest.mark.usefixtures("one_thread")


# The more scenes, the less the rounding of a single one decides; 199 are those of the demo.
@pytest.mark.parametrize(("scenes", "bound"), [(24, 0.01), pytest.param(199, 0.005, marks=pytest.mark.slow)])
def test_average_precision_of_the_demo(scenes: int, bound: float) -> None:
    found = measure(scenes)
    for figure in ("segm_mAP", "bbox_mAP"):
        exact, rounded = (found[precision].figures[figure] for precision in ("fp32", "bf16"))
        print(f"{figure}: fp32 {exact:.4f}, bf16 {rounded:.4f}")
        assert exact > 0.6
        assert abs(rounded - exact) <= bound
