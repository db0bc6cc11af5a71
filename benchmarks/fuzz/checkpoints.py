"""Model files of a tiny detector: our own safetensors and torch's, broken in header, tensors and payload.

What loads has the weights that were written, finite and float32, and categories that are told apart; it never has
COCO's names because others could not be read.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.fuzz.case import Limits, Wrong
from benchmarks.fuzz.mutate import ODD_VALUES, break_bytes, break_tree, dump_json
from pipeline.model.categories import COCO_CATEGORIES, Category
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint, save_checkpoint, weights_digest
from testing.small_model import TINY, TINY_SETTINGS, random_checkpoint

_STEM = "detector"
_COCO_NAMES = tuple(category.name for category in COCO_CATEGORIES)
_METADATA = "__metadata__"
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "", "f32", "F128")
_ODD_TEXTS = ("", "null", "{", "[" * 100_000, '{"a":' * 100_000, "x" * 1_000_000, "maskfleet-2", "1e999")
_ABSURD_SIZES = (0, -1, 255, 4096, 1_000_000, 2**31, 2**63, 10**40, 0.5, True, "7", None)


@dataclass(frozen=True)
class CheckpointCase:
    """A file to be loaded.

    Attributes:
        path: of the file.
        digest: of the weights that must come out, if any do; "" where any may.
        class_names: that must come out, if any do; ``None`` where any but COCO's may.
        whole: whether it must load.
        trap: a folder that is there once code in the file has run.
    """

    story: str
    path: Path
    digest: str = ""
    class_names: tuple[str, ...] | None = None
    whole: bool = False
    trap: Path | None = None

    @property
    def names(self) -> Sequence[str]:
        """The file."""
        return (self.path.name,)

    def check(self) -> None:
        """See `Case`."""
        try:
            loaded = load_checkpoint(self.path)
        except ValueError as error:
            if self.whole:
                raise Wrong("a good file is refused", str(error)) from None
            raise
        finally:
            if self.trap is not None and self.trap.exists():
                raise Wrong("code in a file was run")
        for name, weight in loaded.weights.items():
            if weight.is_floating_point() and weight.dtype != torch.float32:
                raise Wrong("weights that are not float32 are loaded", f"{name}: {weight.dtype}")
            if not torch.isfinite(weight).all():
                raise Wrong("weights that are not finite are loaded", name)
        if self.digest and weights_digest(loaded.weights) != self.digest:
            raise Wrong("other weights are loaded", loaded.weights_sha256)
        self._check_categories(loaded)
        numbers = [value for value in asdict(loaded.settings).values() if isinstance(value, int | float)]
        if not all(-1e9 < number < 1e9 for number in numbers):
            raise Wrong("settings that are no sizes and scores are loaded", repr(loaded.settings))
        json.dumps(loaded.source)

    def _check_categories(self, loaded: Checkpoint) -> None:
        names = tuple(category.name for category in loaded.categories)
        ids = [category.id for category in loaded.categories]
        if len(names) != loaded.variant.num_classes:
            raise Wrong("a category for each class is missing", repr(names))
        if len(set(names)) < len(names) or len(set(ids)) < len(ids):
            raise Wrong("categories with one name or one id are loaded", repr(loaded.categories)[:300])
        if not all(0 <= id_ < 2**31 for id_ in ids):
            raise Wrong("ids that the output cannot hold are loaded", repr(ids)[:300])
        if self.class_names is not None and names != self.class_names:
            told = "COCO's" if names == _COCO_NAMES else "other"
            raise Wrong(f"{told} class names are loaded", f"{names!r:.200} for {self.class_names!r:.200}")


class Checkpoints:
    """See `Kind`."""

    name: ClassVar[str] = "checkpoints"
    limits: ClassVar[Limits] = Limits(seconds=10.0, memory_bytes=500 << 20)

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        categories = [Category(3 * n + 1, f"thing {n}") for n in range(TINY.num_classes)]
        self._few = random_checkpoint(TINY, categories, TINY_SETTINGS)
        many = replace(TINY, num_classes=len(COCO_CATEGORIES))
        self._many = random_checkpoint(many, COCO_CATEGORIES, TINY_SETTINGS)
        save_checkpoint(self._few, folder / "few.safetensors")
        self._own = _in_order((folder / "few.safetensors").read_bytes())
        torch.save({"state_dict": self._few.weights, "meta": {"CLASSES": ("a", "b", "c")}}, folder / "few.pth")
        self._torch = (folder / "few.pth").read_bytes()

    def make(self, rng: random.Random, folder: Path) -> CheckpointCase:
        """See `Kind`."""
        makers = (
            *(self._metadata_broken,) * 6,
            *(self._absurd_sizes,) * 2,
            *(self._entries_broken,) * 4,
            *(self._bytes_broken,) * 4,
            *(self._torch_broken,) * 3,
            *(self._not_finite,) * 2,
            *(self._named_classes,) * 4,
            self._other_type,
            self._with_code,
            self._good,
        )
        return rng.choice(makers)(rng, folder / _STEM)

    def _good(self, rng: random.Random, stem: Path) -> CheckpointCase:
        path = stem.with_suffix(".safetensors")
        path.write_bytes(self._own)
        return CheckpointCase("whole", path, self._few.weights_sha256, _names(self._few), whole=True)

    def _metadata_broken(self, rng: random.Random, stem: Path) -> CheckpointCase:
        """What our header says, changed."""
        header, payload = split_safetensors(self._own)
        metadata = header[_METADATA]
        key = rng.choice(sorted(metadata))
        change = rng.random()
        if change < 0.1:
            del metadata[key]
            story = f"{key} removed"
        elif change < 0.2:
            metadata[key] = rng.choice(_ODD_TEXTS)
            story = f"{key} = {metadata[key]!r:.40}"
        elif change < 0.3:
            header[_METADATA], story = break_tree(metadata, rng)
        elif metadata[key].startswith(("{", "[")):
            stories = []
            tree = json.loads(metadata[key])
            for _ in range(rng.choice((1, 1, 2))):
                tree, story = break_tree(tree, rng)
                stories.append(story)
            metadata[key], story = dump_json(tree, rng), f"{key}: {'; '.join(stories)}"
        else:
            metadata[key] = str(rng.choice([value for value in ODD_VALUES if value != "\ud800"]))
            story = f"{key} = {metadata[key]!r:.40}"
        path = stem.with_suffix(".safetensors")
        path.write_bytes(join_safetensors(dump_json(header, rng), payload))
        return CheckpointCase(f"metadata: {story}", path, self._few.weights_sha256)

    def _absurd_sizes(self, rng: random.Random, stem: Path) -> CheckpointCase:
        """A number of the variant, or of the settings, that makes no model, or an immense one."""
        header, payload = split_safetensors(self._own)
        part = rng.choice(("variant", "variant", "settings"))
        values = json.loads(header[_METADATA][part])
        key, size = rng.choice([key for key in values if key != "name"]), rng.choice(_ABSURD_SIZES)
        if isinstance(values[key], list):
            values[key][rng.randrange(len(values[key]))] = size
        else:
            values[key] = size
        header[_METADATA][part] = json.dumps(values)
        path = stem.with_suffix(".safetensors")
        path.write_bytes(join_safetensors(json.dumps(header), payload))
        return CheckpointCase(f"{part}: {key} = {values[key]}", path, self._few.weights_sha256)

    def _entries_broken(self, rng: random.Random, stem: Path) -> CheckpointCase:
        """What the header says of the tensors, changed."""
        header, payload = split_safetensors(self._own)
        name, other = rng.sample([key for key in header if key != _METADATA], 2)
        entry, change = header[name], rng.randrange(8)
        if change == 0:
            entry["dtype"] = rng.choice(_TYPES)
            story = f"{name}: dtype {entry['dtype']!r}"
        elif change == 1:
            entry["shape"], story = break_tree(entry["shape"], rng)
            story = f"{name}: shape: {story}"
        elif change == 2:
            entry["data_offsets"], story = break_tree(entry["data_offsets"], rng)
            story = f"{name}: data_offsets: {story}"
        elif change == 3:
            entry["data_offsets"] = header[other]["data_offsets"]
            story = f"{name} lies where {other} does"
        elif change == 4:
            del header[name]
            story = f"{name} removed"
        elif change == 5:
            header[rng.choice((f"{name}_", "", "\x00", "x" * 10_000, f"module.{name}"))] = header.pop(name)
            story = f"{name} renamed"
        elif change == 6:
            header[name], header[other] = header[other], header[name]
            story = f"{name} and {other} change places"
        else:
            header, story = break_tree(header, rng)
        path = stem.with_suffix(".safetensors")
        path.write_bytes(join_safetensors(dump_json(header, rng), payload))
        return CheckpointCase(f"tensors: {story}", path, self._few.weights_sha256)

    def _bytes_broken(self, rng: random.Random, stem: Path) -> CheckpointCase:
        path = stem.with_suffix(rng.choice((".safetensors", ".safetensors", ".pth", "")))
        end = 8 + int.from_bytes(self._own[:8], "little")
        if rng.random() < 0.6:
            head, story = break_bytes(self._own[:end], rng)
            content = head + self._own[end:]
        else:
            content, story = break_bytes(self._own, rng, self._torch)
        path.write_bytes(content)
        return CheckpointCase(f"safetensors as {path.name}: {story}", path, self._few.weights_sha256)

    def _torch_broken(self, rng: random.Random, stem: Path) -> CheckpointCase:
        path = stem.with_suffix(rng.choice((".pth", ".pt", ".bin", ".safetensors")))
        start = rng.choice((0, 0, len(self._torch) - 4000))  # the directory of the zip file is at its end
        tail, story = break_bytes(self._torch[start:], rng, self._own)
        path.write_bytes(self._torch[:start] + tail)
        return CheckpointCase(f"torch as {path.name}, from {start} on: {story}", path)

    def _not_finite(self, rng: random.Random, stem: Path) -> CheckpointCase:
        """Weights that a training left behind which diverged."""
        weights = {name: weight.clone() for name, weight in self._few.weights.items()}
        name = rng.choice([name for name, weight in weights.items() if weight.is_floating_point()])
        value = rng.choice((float("nan"), float("inf"), -float("inf")))
        flat = weights[name].view(-1)
        flat[rng.randrange(flat.numel()) : None if rng.random() < 0.5 else flat.numel()] = value
        return _saved(self._few, weights, stem, f"{value} in {name}", rng)

    def _other_type(self, rng: random.Random, stem: Path) -> CheckpointCase:
        kind = rng.choice((torch.float16, torch.bfloat16, torch.float64))
        floats = {name: weight.to(kind) for name, weight in self._few.weights.items() if weight.is_floating_point()}
        weights = {**self._few.weights, **floats}
        return _saved(self._few, weights, stem, f"weights of {kind}", rng)

    def _named_classes(self, rng: random.Random, stem: Path) -> CheckpointCase:
        """Class names as mmdet 2 and 3 write them, and as they should not be."""
        checkpoint = rng.choice((self._few, self._many))
        number = checkpoint.variant.num_classes
        good = tuple(f"kind {n}" for n in range(number))
        odd: Any
        odd, expected = rng.choice(
            (
                (good, good),
                (list(good), good),
                (dict.fromkeys(good, 1), good),
                ("k" * number, ()),
                ("".join(chr(97 + n) for n in range(number)), ()),
                ((good[0],) * number, ()),
                (good[1:], ()),
                (good + good, ()),
                ((), ()),
                ((None,) * number, ()),
                (tuple(range(number)), None),
                (5, ()),
                (rng.choice(ODD_VALUES), None),
            )
        )
        place = rng.choice(("CLASSES", "dataset_meta.classes", "dataset_meta.CLASSES", "dataset_meta.Classes"))
        outer, _, inner = place.partition(".")
        meta = {outer: {inner: odd} if inner else odd}
        path = stem.with_suffix(".pth")
        torch.save({"state_dict": checkpoint.weights, "meta": meta}, path)
        return CheckpointCase(f"{number} classes, {place} = {odd!r:.60}", path, checkpoint.weights_sha256, expected)

    def _with_code(self, rng: random.Random, stem: Path) -> CheckpointCase:
        """A pickle that wants to write a file when it is read."""
        path, trap = stem.with_suffix(rng.choice((".pth", ".pkl", ".bin"))), stem.with_suffix(".trap")
        path.write_bytes(pickle.dumps({"state_dict": _Intruder(trap)}, rng.randrange(6)))
        return CheckpointCase("a pickle with code", path, trap=trap)


class _Intruder:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._target),)


def _names(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(category.name for category in checkpoint.categories)


def _saved(
    checkpoint: Checkpoint, weights: dict[str, Tensor], stem: Path, story: str, rng: random.Random
) -> CheckpointCase:
    """With a digest that fits, as our own file or as torch's."""
    if rng.random() < 0.5:
        path = stem.with_suffix(".safetensors")
        save_checkpoint(replace(checkpoint, weights=weights, weights_sha256=""), path)
        path.write_bytes(_in_order(path.read_bytes()))
    else:
        path = stem.with_suffix(".pth")
        torch.save({"state_dict": weights, "meta": {"CLASSES": _names(checkpoint)}}, path)
    return CheckpointCase(f"{path.suffix}: {story}", path)


def _in_order(content: bytes) -> bytes:
    """With a header in the order of its keys, which safetensors writes in another order each time."""
    header, payload = split_safetensors(content)
    return join_safetensors(json.dumps(header, sort_keys=True), payload)


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and payload."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header: str, payload: bytes) -> bytes:
    """The file, with a length that fits."""
    encoded = header.encode(errors="surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + payload
