"""What a batch asks of a GPU, in hard numbers: no launch, wait or copy more than there was."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.launches import (
    BATCHES,
    NARROW_PICTURE,
    NARROW_SETTINGS,
    NARROW_SWIN_B,
    PARTS,
    Batch,
    count,
    main,
    modelled_s,
    summary,
    table,
)
from pipeline.model.cascade_mask_rcnn.variants import SWIN_B
from testing.pretended_cuda import Launch

pytestmark = pytest.mark.usefixtures("one_thread")
# Of a forward in bf16, whatever the batch, each Triton kernel and each op of PyTorch counted as `pretended.costs` says.
MAX_LAUNCHES = 824


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return count(NARROW_SWIN_B, NARROW_SETTINGS, NARROW_PICTURE, "bf16", (1, 2, 8))


def test_the_host_waits_for_nothing_in_the_forward(batches: list[Batch]) -> None:
    for batch in batches:
        assert [wait for wait in batch.waits if "forward" in wait.part] == []


def test_the_host_waits_for_the_end_of_the_forward_and_of_the_copy(batches: list[Batch]) -> None:
    for batch in batches:
        assert [wait.kind for wait in batch.waits] == ["event", "event"]


def test_one_copy_each_way(batches: list[Batch]) -> None:
    for batch in batches:
        assert [(transfer.direction, transfer.pinned) for transfer in batch.transfers] == [("in", True), ("out", True)]


def test_no_weight_is_cast(batches: list[Batch]) -> None:
    for batch in batches:
        assert [launch for launch in batch.launches if launch.cast and launch.of_weight] == []


def test_launches(batches: list[Batch]) -> None:
    one, two, eight = (batch.forward().launches for batch in batches)
    assert one <= two == eight <= MAX_LAUNCHES


def test_the_narrow_model_has_the_structure_of_swin_b() -> None:
    assert NARROW_SWIN_B.depths == SWIN_B.depths
    assert NARROW_SWIN_B.box_convs == SWIN_B.box_convs
    assert NARROW_SWIN_B.mask_convs == SWIN_B.mask_convs


def test_parts_add_up(batches: list[Batch]) -> None:
    for batch in batches:
        parts = [batch.part(name) for name in PARTS]
        for name in ("launches", "waits", "casts", "bytes", "flops"):
            assert sum(getattr(part, name) for part in parts) == getattr(batch.all(), name)
        assert len(table(batch)) == len(PARTS) + 3


def test_json(batches: list[Batch], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.launches.count", lambda *args: batches)
    assert main(["--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == summary(batches)
    assert set(printed["batches"]) == {"1", "2", "8"}
    assert printed["batches"]["8"]["transfers_in"] == 1
    assert set(BATCHES) == {1, 4, 8, 16}


def launch(flops: int, size: int, dtype: torch.dtype) -> Launch:
    return Launch("mm", (), dtype, 1, size, flops, False, False, "?")


@pytest.mark.parametrize(
    ("launch", "seconds"),
    [
        pytest.param(launch(989 * 10**9, 10, torch.bfloat16), 2e-3, id="arithmetic"),
        pytest.param(launch(67 * 10**9, 10, torch.float32), 2e-3, id="arithmetic in float32"),
        pytest.param(launch(10, 4 * 10**9, torch.bfloat16), 1e-3, id="memory"),
        pytest.param(launch(10, 10, torch.bfloat16), 2e-6, id="the shortest"),
    ],
)
def test_model_of_time(launch: Launch, seconds: float) -> None:
    assert modelled_s(launch) == pytest.approx(seconds)
