"""Every layout gives the same weights; every other file is refused with a message, and none runs code."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.categories import COCO_CATEGORIES, Category
from pipeline.model.files import checkpoints
from pipeline.model.files.checkpoints import (
    Checkpoint,
    CheckpointError,
    file_sha256,
    load_checkpoint,
    save_checkpoint,
    weights_digest,
)
from pipeline.model.settings import TestSettings
from testing.small_model import SMALL, SMALL_CATEGORIES
from tests.model.golden_weights import official_weights, save_mmdet3, save_modelscope, save_official, to_mmdet3

State = dict[str, Tensor]
NAMES = [category.name for category in SMALL_CATEGORIES]


# ------------------------------------------------------------------------------------------------------------- layouts
def save_ddp(state: State, path: Path) -> Path:
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def save_wrapped(state: State, path: Path) -> Path:
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, path)
    return path


def save_bare(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def save_legacy(state: State, path: Path) -> Path:
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    return path


def save_training(state: State, path: Path) -> Path:
    """With what a training run leaves beside the weights."""
    momentum = {i: {"step": 5, "exp_avg": torch.zeros(3)} for i in range(3)}
    optimizer = {"state": momentum, "param_groups": [{"lr": 1e-4, "params": [0, 1, 2]}]}
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "optimizer": optimizer, "amp": {"loss_scaler0": {}}}, path)
    return path


def save_foreign_safetensors(state: State, path: Path) -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


# name: (writer, file name, layout)
FILES: dict[str, tuple[Callable[[State, Path], Path], str, str]] = {
    "official": (save_official, "a.pth", "official"),
    "ModelScope": (save_modelscope, "pytorch_model.pt", "official"),
    "mmdet 3.x": (save_mmdet3, "epoch_36.pth", "mmdet3"),
    "prefix of DistributedDataParallel": (save_ddp, "a.pth", "official"),
    "prefix of ModelScope's wrapper": (save_wrapped, "a.pth", "official"),
    "weights and nothing else": (save_bare, "a.bin", "official"),
    "before zip files": (save_legacy, "a.pth", "official"),
    "with optimizer": (save_training, "latest.pth", "official"),
    "official names in safetensors": (save_foreign_safetensors, "a.safetensors", "official"),
    "safetensors by another suffix": (save_foreign_safetensors, "a.bin", "official"),
    "mmdet 3.x names in safetensors": (
        lambda s, p: save_foreign_safetensors(to_mmdet3(s), p),
        "a.safetensors",
        "mmdet3",
    ),
}


@pytest.fixture(scope="module")
def coco_state() -> State:
    """The small model with COCO's 80 classes, which published files need not name."""
    return official_weights(replace(SMALL, num_classes=80))


@pytest.mark.parametrize(("save", "name", "layout"), FILES.values(), ids=FILES.keys())
def test_every_layout_gives_the_same_checkpoint(
    save: Callable[[State, Path], Path], name: str, layout: str, coco_state: State, tmp_path: Path
) -> None:
    path = save(coco_state, tmp_path / name)
    checkpoint = load_checkpoint(path)
    expected = to_native(coco_state, "official")
    assert checkpoint.weights.keys() == expected.keys()
    assert all(torch.equal(checkpoint.weights[k], expected[k]) for k in expected)
    assert checkpoint.weights_sha256 == weights_digest(expected)
    assert checkpoint.variant == replace(SMALL, num_classes=80)
    assert checkpoint.categories == COCO_CATEGORIES
    assert checkpoint.settings == TestSettings()
    assert checkpoint.source == {"file": name, "layout": layout, "sha256": file_sha256(path)}


def test_half_precision_becomes_float32(small_state: State, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in small_state.items()}
    checkpoint = load_checkpoint(save_bare(half, tmp_path / "half.pth"), SMALL_CATEGORIES)
    weight = checkpoint.weights["rpn.conv.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, small_state["rpn_head.rpn_conv.weight"].half().float())
    assert checkpoint.weights["box_heads.stages.0.convs.0.norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_our_own_file_of_another_precision_becomes_float32(
    dtype: torch.dtype, small_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other = {k: v.to(dtype) if v.is_floating_point() else v for k, v in small_checkpoint.weights.items()}
    save_checkpoint(replace(small_checkpoint, weights=other, weights_sha256=""), tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    expected = {k: v.float() if v.is_floating_point() else v for k, v in other.items()}
    assert all(loaded.weights[k].dtype == v.dtype and torch.equal(loaded.weights[k], v) for k, v in expected.items())
    assert loaded.weights_sha256 == weights_digest(expected)
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-1000] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="the weights are not those the file was written with"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
@pytest.mark.parametrize("own_file", [False, True])
def test_weights_that_are_no_real_numbers_are_refused(
    own_file: bool, dtype: torch.dtype, small_state: State, small_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """What quantising leaves without its scales, say."""
    state = small_checkpoint.weights if own_file else small_state
    name = "rpn.conv.weight" if own_file else "rpn_head.rpn_conv.weight"
    path = tmp_path / "a.safetensors"
    if own_file:
        save_checkpoint(small_checkpoint, path)
    with safe_open(path, framework="pt") if own_file else nullcontext() as file:
        header = file.metadata() if file else None
    save_file({k: v.contiguous() for k, v in (state | {name: state[name].to(dtype)}).items()}, path, metadata=header)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"no floating-point numbers \(1\):\n  rpn\.conv\.weight {kind}"):
        load_checkpoint(path, SMALL_CATEGORIES)


def test_digest_depends_on_names_types_shapes_and_bytes() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    changed: list[State] = [
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([np.nextafter(np.float32(1), np.float32(2))])},
    ]
    assert weights_digest(weights) == weights_digest(dict(reversed(weights.items())))
    strided = torch.zeros(3, 2).T
    assert weights_digest(weights) == weights_digest({**weights, "a": strided})
    digests = {weights_digest(w) for w in [weights, *changed]}
    assert len(digests) == 5


# ---------------------------------------------------------------------------------------------------------- categories
def own(names: list[str]) -> tuple[Category, ...]:
    return tuple(Category(i + 1, name) for i, name in enumerate(names))


# name: (what stands beside the weights, categories given, expected)
CATEGORIES: dict[str, tuple[dict[str, Any], tuple[Category, ...] | None, tuple[Category, ...]]] = {
    "CLASSES as mmdet 2.x writes them": ({"CLASSES": tuple(NAMES)}, None, own(NAMES)),
    "dataset_meta as mmdet 3.x writes it": ({"dataset_meta": {"classes": NAMES}}, None, own(NAMES)),
    "classes of mmdet 3.x beside each other": ({"dataset_meta": {"CLASSES": tuple(NAMES)}}, None, own(NAMES)),
    "in any case": ({"Classes": NAMES}, None, own(NAMES)),
    "null, and then the names": ({"CLASSES": None, "DATASET_META": {"classes": NAMES}}, None, own(NAMES)),
    "given wins": ({"CLASSES": tuple(NAMES)}, SMALL_CATEGORIES, SMALL_CATEGORIES),
    "given where the file says nothing": ({}, SMALL_CATEGORIES, SMALL_CATEGORIES),
}


@pytest.mark.parametrize(("meta", "given", "expected"), CATEGORIES.values(), ids=CATEGORIES.keys())
def test_categories(
    meta: dict[str, Any],
    given: tuple[Category, ...] | None,
    expected: tuple[Category, ...],
    small_state: State,
    tmp_path: Path,
) -> None:
    torch.save({"meta": meta, "state_dict": small_state}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth", given).categories == expected


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"CLASSES": "person"}, "1 categories for a model of 80 classes"),
        ({"dataset_meta": {"CLASSES": ["cat", "dog"]}}, "2 categories for a model of 80 classes"),
        ({"CLASSES": ["cat"] * 80}, "several classes have one name: cat"),
        ({"CLASSES": list(range(80))}, "CLASSES is no list of class names"),
        ({"CLASSES": {"cat": 1}}, "CLASSES is no list of class names"),
        ({"dataset_meta": {"classes": []}}, "classes is no list of class names"),
    ],
)
def test_names_that_are_none_are_never_taken_for_cocos(
    meta: dict[str, Any], message: str, coco_state: State, tmp_path: Path
) -> None:
    torch.save({"meta": meta, "state_dict": coco_state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: {message}|a\.pth: the file's {message}"):
        load_checkpoint(tmp_path / "a.pth")


def test_one_class_may_be_a_string(tmp_path: Path) -> None:
    """``classes = ('person')`` in a config of mmdet is no tuple."""
    state = official_weights(replace(SMALL, num_classes=1))
    torch.save({"meta": {"CLASSES": "person"}, "state_dict": state}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").categories == own(["person"])


def test_80_classes_without_names_are_cocos_and_that_is_said(
    coco_state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = tuple(category.name for category in COCO_CATEGORIES)
    torch.save({"meta": {"CLASSES": names}, "state_dict": coco_state}, tmp_path / "named.pth")
    assert load_checkpoint(tmp_path / "named.pth").categories == COCO_CATEGORIES
    assert not caplog.records
    assert load_checkpoint(save_bare(coco_state, tmp_path / "bare.pth")).categories == COCO_CATEGORIES
    assert "does not name its 80 classes" in caplog.text


def test_unnamed_categories_are_asked_for(small_state: State, tmp_path: Path) -> None:
    path = save_bare(small_state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: the file does not name its 5 classes: give their names"):
        load_checkpoint(path)


@pytest.mark.parametrize("count", [4, 6])
def test_number_of_categories_must_fit(count: int, small_state: State, tmp_path: Path) -> None:
    path = save_bare(small_state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: {count} categories for a model of 5 classes"):
        load_checkpoint(path, own([f"c{i}" for i in range(count)]))


# --------------------------------------------------------------------------------------------------- files that are not
def only(*names: str) -> State:
    return {name: torch.zeros(2, 2) for name in names}


RESNET = only("backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "neck.fpn_convs.0.conv.weight")
CLASSIFIER = only("layers.0.blocks.0.norm1.weight", "layers.0.downsample.norm.weight", "head.weight")

# name: (content of a .pth file, part of the message)
WRONG: dict[str, tuple[Any, str]] = {
    "ResNet detector": ({"state_dict": RESNET}, "not the weights of a Cascade Mask R-CNN Swin"),
    "ImageNet backbone": ({"model": CLASSIFIER}, "ImageNet backbone without a detector"),
    "no weights": ({"epoch": 3}, "no tensors at all"),
    "empty dict": ({}, "no tensors at all"),
    "a list": ([torch.zeros(3)], "holds a list, expected a dict of weights"),
    "a tensor": (torch.zeros(3), "holds a Tensor, expected a dict of weights"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_contents(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(tmp_path / "wrong.pth")
    assert str(error.value).startswith(str(tmp_path / "wrong.pth"))


def test_everything_that_does_not_fit_is_listed(small_state: State, tmp_path: Path) -> None:
    missing, misshapen = "backbone.norm2.weight", "neck.fpn_convs.1.conv.bias"
    changed = {k: v for k, v in small_state.items() if k != missing}
    changed |= {misshapen: torch.zeros(7), "roi_head.semantic_head.weight": torch.zeros(1)}
    path = save_bare(changed, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, SMALL_CATEGORIES)
    message = str(error.value)
    assert "missing (1):\n  backbone.norms.2.weight" in message
    assert "unexpected (1):\n  roi_head.semantic_head.weight" in message
    assert "of another shape (1):\n  neck.outputs.1.bias (7,), expected (16,)" in message


MISSHAPEN = {
    "fully connected layer without columns": ("roi_head.bbox_head.0.shared_fcs.0.weight", (32,)),
    "bias table without heads": ("backbone.layers.0.blocks.0.attn.relative_position_bias_table", (169,)),
    "convolution without axes": ("rpn_head.rpn_conv.weight", ()),
}


@pytest.mark.parametrize(("name", "shape"), MISSHAPEN.values(), ids=MISSHAPEN.keys())
def test_too_few_axes_where_sizes_are_read(
    name: str, shape: tuple[int, ...], small_state: State, tmp_path: Path
) -> None:
    path = save_bare(small_state | {name: torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(path, SMALL_CATEGORIES)


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            load_checkpoint(path)


@pytest.fixture(scope="module")
def saved(
    small_checkpoint: Checkpoint, small_state: State, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The bytes of one good file in each container."""
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(small_checkpoint, folder / "own.safetensors")
    save_bare(small_state, folder / "zip.pth")
    save_legacy(small_state, folder / "legacy.pth")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["own.safetensors", "zip.pth"])
def test_truncated_file(name: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    data, path = saved[name], tmp_path / name
    for cut in (0, 1, 7, 8, 9, 100, 1000, len(data) // 2, len(data) - 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path, SMALL_CATEGORIES)


def test_truncated_legacy_file(saved: dict[str, bytes], tmp_path: Path) -> None:
    data, path = saved["legacy.pth"], tmp_path / "legacy.pth"
    for cut in (*range(0, 1000, 13), len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path, SMALL_CATEGORIES)


# name: bytes of a file that is no checkpoint
GARBAGE = {
    "empty": b"",
    "text": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "zip of nothing": b"PK\x05\x06" + bytes(18),
    "zip header": b"PK\x03\x04" + bytes(60),
    "safetensors header, no JSON": struct.pack("<Q", 20) + b"{" + bytes(40),
    "safetensors header, too long": struct.pack("<Q", 2**62) + b"{}",
    **{f"random bytes {seed}": np.random.default_rng(seed).bytes(300) for seed in range(5)},
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


BROKEN_PICKLES = {
    "pop from nothing": b"\x80\x02.",
    "reduce nothing": b"\x80\x02R.",
    "append to nothing": b"\x80\x02]a.",
}


@pytest.mark.parametrize("data", BROKEN_PICKLES.values(), ids=BROKEN_PICKLES.keys())
def test_broken_pickle(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


class Attack:
    """Unpickled without care, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def zipped(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("dump", [pickled, zipped, legacy])
def test_code_in_a_file_does_not_run(dump: Callable[[Any], bytes], small_state: State, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "attack.pth"
    path.write_bytes(dump({"state_dict": small_state, "meta": Attack(target)}))
    with pytest.raises(CheckpointError, match=r"attack\.pth"):
        load_checkpoint(path, SMALL_CATEGORIES)
    assert not target.exists()
    if dump is not pickled:
        torch.load(path, weights_only=False)
        assert target.exists()  # the file is one that works


@pytest.mark.parametrize("dump", [zipped, legacy])
def test_refused_objects_are_named_as_the_reason(dump: Callable[[Any], bytes], tmp_path: Path) -> None:
    path = tmp_path / "attack.pth"
    path.write_bytes(dump({"meta": Attack(tmp_path / "ran")}))
    with pytest.raises(CheckpointError, match=r"unpickling them could run code; refused"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"# A project\n\nIts README.\n", id="text"),
        pytest.param(b"<!DOCTYPE html><title>404</title>", id="a page in place of the download"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", id="a pointer of Git LFS"),
        pytest.param(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", id="a picture"),
        pytest.param(b"", id="nothing"),
        pytest.param(pickled({"a": 1})[:-4], id="a pickle cut off"),
        pytest.param(zipped({"a": 1})[:-4], id="an archive cut off"),
        pytest.param(legacy({"a": 1})[:-40], id="an old file cut off"),
    ],
)
def test_what_is_no_checkpoint_is_said_without_torch_s_advice(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.pth: not a (readable )?checkpoint") as refused:
        load_checkpoint(path)
    assert "weights_only" not in str(refused.value)
    assert len(str(refused.value)) < 300


# ------------------------------------------------------------------------------------------------------------ own file
def test_round_trip(small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint = replace(small_checkpoint, source={"file": "x.pth", "layout": "official", "licence": "Apache-2.0"})
    save_checkpoint(checkpoint, tmp_path / "new" / "folder" / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "new" / "folder" / "model.safetensors")
    assert loaded.weights.keys() == checkpoint.weights.keys()
    for name, weight in checkpoint.weights.items():
        assert loaded.weights[name].dtype == weight.dtype
        assert torch.equal(loaded.weights[name], weight), name
    for field in ("variant", "categories", "settings", "source", "weights_sha256"):
        assert getattr(loaded, field) == getattr(checkpoint, field)


def test_header_says_what_the_weights_are(small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small_checkpoint, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "maskfleet-1"
    assert json.loads(header["variant"])["embed_dim"] == SMALL.embed_dim
    assert json.loads(header["categories"])[1] == [13, "thing 1"]
    assert json.loads(header["settings"])["short_side"] == small_checkpoint.settings.short_side
    assert header["weights_sha256"] == small_checkpoint.weights_sha256


def test_categories_given_replace_those_in_our_file(small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small_checkpoint, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path / "model.safetensors", own(NAMES)).categories == own(NAMES)


def test_tampered_weights_are_refused(saved: dict[str, bytes], tmp_path: Path) -> None:
    data, path = bytearray(saved["own.safetensors"]), tmp_path / "model.safetensors"
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the weights are not those the file was written with"):
        load_checkpoint(path)


# name: (key of the header, new value, or None to leave it out)
TAMPERED = {
    "no variant": ("variant", None),
    "no digest": ("weights_sha256", None),
    "another digest": ("weights_sha256", "0" * 64),
    "variant of another size": (
        "variant",
        '{"name": "custom", "embed_dim": 8, "depths": [1,1,1,1], "num_heads": [1,1,1,1]}',
    ),
    "variant with an unknown key": ("variant", '{"name": "custom", "depth": 3}'),
    "no JSON": ("settings", "{"),
    "settings out of range": ("settings", '{"nms_iou": 2}'),
    "a side beyond int64": ("settings", '{"long_side": 9223372036854775808}'),
    "a side of no sense": ("settings", '{"short_side": 1000000000, "long_side": 1000000000}'),
    "a category too few": ("categories", '[[1, "a"], [2, "b"], [3, "c"], [4, "d"]]'),
    "categories without ids": ("categories", '["a", "b", "c", "d", "e"]'),
}


@pytest.mark.parametrize(("key", "value"), TAMPERED.values(), ids=TAMPERED.keys())
def test_damaged_headers_are_refused(key: str, value: str | None, small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(small_checkpoint, path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    header = {k: v for k, v in header.items() if k != key} | ({} if value is None else {key: value})
    save_file(small_checkpoint.weights, path, metadata=header)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


def test_a_failed_save_leaves_the_old_file(
    small_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(small_checkpoint, path)
    before = path.read_bytes()

    def disk_full(tensors: State, part: Path, metadata: dict[str, str]) -> None:
        Path(part).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(replace(small_checkpoint, source={"file": "other"}), path)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(small_checkpoint, tmp_path / "new.safetensors")
    assert path.read_bytes() == before
    assert not (tmp_path / "new.safetensors").exists()


def test_a_save_leaves_nothing_else(small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small_checkpoint, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_checkpoint_checks_its_weights(small_checkpoint: Checkpoint) -> None:
    fewer = {k: v for k, v in small_checkpoint.weights.items() if k != "rpn.conv.bias"}
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n  rpn\.conv\.bias"):
        replace(small_checkpoint, weights=fewer)
    with pytest.raises(CheckpointError, match="4 categories for a model of 5 classes"):
        replace(small_checkpoint, categories=SMALL_CATEGORIES[:4])


# ---------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "save",
    [save_bare, save_training, save_legacy, save_foreign_safetensors, lambda s, p: save_mmdet3(s, p)],
    ids=["bare", "training", "legacy", "safetensors", "mmdet 3.x"],
)
def test_numbers_that_are_none_are_refused(
    save: Callable[[State, Path], Path], value: float, small_state: State, tmp_path: Path
) -> None:
    name = "rpn_head.rpn_conv.weight"
    damaged = small_state[name].clone()
    damaged.view(-1)[-1] = value
    path = save(small_state | {name: damaged}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=rf"a\.bin: 1 of .* tensors hold NaN or infinity: {name}"):
        load_checkpoint(path, SMALL_CATEGORIES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_nan_of_other_types_is_found(dtype: torch.dtype, small_state: State, tmp_path: Path) -> None:
    damaged = {"rpn_head.rpn_conv.weight": small_state["rpn_head.rpn_conv.weight"].mul(float("nan")).to(dtype)}
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_checkpoint(save_bare(small_state | damaged, tmp_path / "a.pth"), SMALL_CATEGORIES)


def test_our_own_file_of_a_training_that_diverged(small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = {**small_checkpoint.weights, "neck.outputs.1.bias": torch.full((16,), float("nan"))}
    save_checkpoint(replace(small_checkpoint, weights=weights, weights_sha256=""), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity: neck\.outputs\.1\.bias"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_tensor_without_its_numbers(small_state: State, tmp_path: Path) -> None:
    """One number, repeated a billion times by a stride of 0."""
    huge = torch.zeros(1).expand(1 << 40)
    with pytest.raises(CheckpointError, match="is no tensor with all its numbers"):
        load_checkpoint(save_bare(small_state | {"rpn_head.rpn_conv.bias": huge}, tmp_path / "a.pth"), SMALL_CATEGORIES)


# ------------------------------------------------------------------------------------------------------- any header
_HEADER_KEYS = ("format", "architecture", "variant", "categories", "settings", "source", "weights_sha256")
_NUMBERS = st.sampled_from([0, -1, 1 << 20, 10**6, 2**63, 10**30, 1e300, float("nan"), float("inf"), True, None, "1"])
_JSON = st.recursive(_NUMBERS | st.text(max_size=3), lambda x: st.lists(x, max_size=5) | st.dictionaries(st.text(), x))
_NESTED = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 100_000])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_is_refused_or_changes_nothing(data: st.DataObject, saved: dict[str, bytes], tmp_path: Path) -> None:
    """In bounded time: a field of the header is another, or a value within it."""
    raw = saved["own.safetensors"]
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    meta, key = header["__metadata__"], data.draw(st.sampled_from(_HEADER_KEYS))
    if key in ("variant", "settings") and data.draw(st.booleans()):
        values = json.loads(meta[key])
        name = data.draw(st.sampled_from(sorted(values)))
        whole = values[name]
        values[name] = [data.draw(_NUMBERS), *whole[1:]] if isinstance(whole, list) else data.draw(_NUMBERS | _JSON)
        meta[key] = json.dumps(values)
    else:
        meta[key] = data.draw(_JSON.map(json.dumps) | _NESTED | st.text(max_size=20))
    text = json.dumps(header).encode()
    size = data.draw(st.sampled_from([len(text)] * 5 + [0, 1, 2**40, 2**63]))
    path = tmp_path / "a.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + text + raw[8 + length :])
    started = time.monotonic()
    try:
        loaded: Checkpoint | None = load_checkpoint(path)
    except CheckpointError:
        loaded = None
    assert time.monotonic() - started < 5
    assert loaded is None or loaded.weights_sha256 == header["__metadata__"]["weights_sha256"]
