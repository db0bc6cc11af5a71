"""The kernels for CUDA: run by Triton's interpreter, compiled for an H100, and run on a GPU where there is one.

Oracles: torchvision and OpenCV (in `interpreted`), what NVIDIA's assembler says of a kernel, the operators on the CPU.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.model.kernels.nms import nms_groups
from pipeline.model.kernels.resize import resize_normalise
from pipeline.model.kernels.roi_align import roi_align_levels
from tests.model.kernels.cases import STRIDES, UNUSABLE_BOXES, boxes_of_all_kinds, crowd, maps, packed, pictures_of

ROOT = Path(__file__).parents[3]

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from pipeline.model.kernels.nms import nms_groups
from pipeline.model.kernels.resize import resize_normalise
from pipeline.model.kernels.roi_align import roi_align_levels
boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
assert nms_groups(boxes[None], torch.ones(1, 2, dtype=torch.bool), 0.5).tolist() == [[True, False]]
"""


def run(*command: str | Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_but_cuda_works_without_triton() -> None:
    run("-c", WITHOUT_TRITON)


def interpreter_is_broken() -> bool:
    """Triton 3.6's makes numbers of arrays of one element, which numpy refuses from 2.4 on."""
    triton = pytest.importorskip("triton")
    versions = [tuple(int(n) for n in module.__version__.split(".")[:2]) for module in (triton, np)]
    return versions[0] < (3, 9) and versions[1] >= (2, 4)


def test_equal_to_torchvision_and_opencv_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    if interpreter_is_broken():
        pytest.skip("this Triton's interpreter and this numpy do not fit")
    file = Path(__file__).with_name("interpreted.py")
    run("-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")


@dataclass(frozen=True)
class Launch:
    """A kernel as one of the functions of `cuda` starts it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def source(self) -> Any:
        """What is compiled: types of the arguments, pointers aligned as PyTorch's allocator does, constants."""
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        constants = {name: value for name, value in self.options.items() if name in names}
        types = {name: type_of(value) for name, value in zip(names, self.arguments, strict=False)}
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, value in enumerate(self.arguments) if isinstance(value, Tensor)
        }
        signature = types | dict.fromkeys(constants, "constexpr")
        return ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=aligned)


def type_of(value: Any) -> str:
    pointers = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.int64: "*i64",
        torch.int32: "*i32",
        torch.uint8: "*u8",
    }
    if isinstance(value, Tensor):
        return pointers[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@dataclass
class Recorder:
    """In place of a kernel: notes what it is started with."""

    kernel: Any
    launches: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.launches.append(Launch(self.kernel, grid, arguments, options))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Launch]:
    """Filled by calls of `cuda`, whose tensors may be without memory."""
    pytest.importorskip("triton")
    from pipeline.model.kernels import cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: list[Launch] = []
    for name in [name for name in vars(cuda) if name.endswith("_kernel")]:
        monkeypatch.setattr(cuda, name, Recorder(getattr(cuda, name), found))
    return found


def pool(dtype: torch.dtype, side: int, number: int = 8000) -> None:
    """Eight images of 800 x 1088, as the published model has them."""
    from pipeline.model.kernels import cuda

    features = [torch.empty(8, 256, 800 // s, 1088 // s, dtype=dtype, device="meta") for s in STRIDES]
    features = [feature.to(memory_format=torch.channels_last) for feature in features]
    index = torch.empty(number, dtype=torch.int64, device="meta")
    cuda.roi_align_levels(features, torch.empty(number, 4, device="meta"), index, index, side, STRIDES)


def suppress(groups: int, number: int) -> None:
    from pipeline.model.kernels import cuda

    valid = torch.empty(groups, number, dtype=torch.bool, device="meta")
    cuda.nms_groups(torch.empty(groups, number, 4, device="meta"), valid, 0.7)


def resize(images: int) -> None:
    from pipeline.model.kernels import cuda

    table = torch.empty(images, 5, dtype=torch.int64, device="meta")
    pixels = torch.empty(1 << 20, dtype=torch.uint8, device="meta")
    cuda.resize_normalise(pixels, table, 800, 1088, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@dataclass(frozen=True)
class Bound:
    """What a kernel may take, and what its code must hold.

    Attributes:
        call: starts it.
        launch: which of the call's launches it is.
        registers: of a thread at most; an SM of an H100 has 65,536.
        instructions: how often PTX instructions stand in it.
    """

    call: Callable[[], None]
    launch: int
    registers: int
    instructions: dict[str, int] = field(default_factory=dict)


# Pixels of the maps and words of the bit mask are loaded 16 bytes at a time, with nothing narrower beside them.
KERNELS = {
    # 64: then 32 programs of one warp, the most that an SM takes, have the registers they need.
    "RoIAlign, bfloat16, boxes": Bound(
        lambda: pool(torch.bfloat16, 7), 0, 64, {"ld.global.v4.b32": 4, "st.global.v4.b32": 1, "cvt.rn.bf16x2.f32": 4}
    ),
    "RoIAlign, bfloat16, masks": Bound(
        lambda: pool(torch.bfloat16, 14), 0, 64, {"ld.global.v4.b32": 4, "st.global.v4.b32": 1, "cvt.rn.bf16x2.f32": 4}
    ),
    "RoIAlign, float32, boxes": Bound(
        lambda: pool(torch.float32, 7), 0, 64, {"ld.global.v4.b32": 8, "st.global.v4.b32": 2}
    ),
    "RoIAlign, float32, masks": Bound(
        lambda: pool(torch.float32, 14), 0, 64, {"ld.global.v4.b32": 8, "st.global.v4.b32": 2}
    ),
    "overlaps of 1000": Bound(lambda: suppress(40, 1000), 0, 128),
    "scan of 1000": Bound(lambda: suppress(40, 1000), 1, 72, {"ld.global.v4.b32": 8}),
    "overlaps of 2048": Bound(lambda: suppress(8, 2048), 0, 128),
    "scan of 2048": Bound(lambda: suppress(8, 2048), 1, 96, {"ld.global.v4.b32": 16}),
    "suppression across chunks": Bound(lambda: suppress(1, 2049), 2, 168),
    "resize": Bound(lambda: resize(8), 0, 64),
}


def is_inexact(instruction: str) -> bool:
    """Whether it may give another float than IEEE 754 says: sums and products in one, quotients, tiny numbers as 0.

    Floor and ceiling (``cvt``) of numbers below 1e-38 are not what is meant: no position is so near to a whole number.
    """
    return instruction.startswith(("fma.rn", "div.full", "div.approx", "rcp.")) or (
        ".ftz" in instruction and not instruction.startswith(("cvt.rmi.ftz", "cvt.rpi.ftz"))
    )


@pytest.mark.parametrize("bound", KERNELS.values(), ids=KERNELS.keys())
def test_compiled_for_an_h100(bound: Bound, launches: list[Launch], tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    bound.call()
    launch = launches[bound.launch]
    options = {name: value for name, value in launch.options.items() if name not in launch.kernel.arg_names}
    compiled = triton.compile(launch.source(), target=GPUTarget("cuda", 90, 32), options=options)

    code = compiled.asm["ptx"]
    assert {name: len(re.findall(rf"\b{name}\b", code)) for name in bound.instructions} == bound.instructions
    assert launch.options["enable_fp_fusion"] is False
    assert [word for word in code.split() if is_inexact(word)] == []

    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    dump = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
    usage = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    assert used["REG"] <= bound.registers
    assert used["STACK"] == used["LOCAL"] == 0  # where spilled registers would be


def test_number_of_launches(launches: list[Launch]) -> None:
    pool(torch.bfloat16, 7)
    resize(8)
    suppress(40, 1000)
    assert [len(launch.grid) for launch in launches] == [2, 2, 3, 1]


def test_memory_of_nms_is_bounded(launches: list[Launch]) -> None:
    """80,000 boxes: 1000 proposals of 80 classes. All with all, they would take 800 MB."""
    suppress(1, 80_000)
    assert max(value.nbytes for launch in launches for value in launch.arguments if isinstance(value, Tensor)) == max(
        80_000 * 4 * 4, 2048 * 2048 // 8
    )
    assert len(launches) == 3 * math.ceil(80_000 / 2048) - 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
class TestOnAGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("side", [7, 14])
    def test_roi_align(self, dtype: torch.dtype, side: int) -> None:
        """Up to the order of sums, in which the kernel for CPUs differs from torchvision's too."""
        features, (boxes, levels, images) = [feature.to(dtype) for feature in maps(channels=256)], boxes_of_all_kinds()
        unusable = torch.tensor(UNUSABLE_BOXES)
        boxes, levels = torch.cat([boxes, unusable]), torch.cat([levels, torch.arange(len(unusable)) % 4])
        images = torch.cat([images, torch.zeros(len(unusable), dtype=torch.int64)])
        expected = roi_align_levels(features, boxes, levels, images, side, STRIDES)
        moved = [x.cuda() for x in (boxes, levels, images)]
        found = roi_align_levels([feature.cuda() for feature in features], *moved, side, STRIDES)
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found.cpu(), expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=1e-4)

    @pytest.mark.parametrize(("groups", "number"), [(3, 1), (40, 1000), (2, 2048), (2, 5000)])
    def test_nms(self, groups: int, number: int) -> None:
        boxes, valid = crowd(groups, number, seed=number)
        for iou_threshold in (0.5, 0.6, 0.7):
            found = nms_groups(boxes.cuda(), valid.cuda(), iou_threshold)
            assert torch.equal(found.cpu(), nms_groups(boxes, valid, iou_threshold))

    def test_resize(self) -> None:
        random = np.random.default_rng(0)
        sizes = random.integers(1, (600, 600, 320, 320), (16, 4)).tolist()
        arguments = packed(pictures_of([(h, w) for h, w, _, _ in sizes]), [(h, w) for _, _, h, w in sizes])
        found = resize_normalise(*(x.cuda() for x in arguments), 320, 320)
        assert torch.equal(found.cpu(), resize_normalise(*arguments, 320, 320))
