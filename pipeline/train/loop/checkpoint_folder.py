"""What a training run leaves behind, and goes on from; local or on an object store.

    best.safetensors           the model with the best validation figure; annotate takes it as it is
    last.safetensors           the model as it is now, likewise; its header says where training stands
    state-<iteration>.safetensors   what else training needs to go on from there

With an average of the weights, ``best`` and ``last`` hold the average, and the state the weights that are trained.
A state file is written first and named by ``last``, which is replaced as a whole: whenever a run is killed, ``last``
and the state it names belong together. Older states are removed afterwards.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline.model.files.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    read_weights,
    save_checkpoint,
    weights_digest,
    write_safetensors,
)
from pipeline.storage.objects.base import ObjectFolder
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import temporary_names
from pipeline.train.loop.settings import BEST, LAST

_STATE = re.compile(r"state-\d{8,}\.safetensors")
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
# Of a training that was killed while it wrote; the lock says that nobody else writes now.
_LEFTOVER = temporary_names(r"(state-\d+|last|best)\.safetensors")
_WEIGHTS, _OPTIMIZER = "weights.", "optimizer."
_TIMEOUT_S = 600.0  # for one request; large files go in parts


@dataclass(frozen=True)
class Position:
    """Where training stands. Random numbers have no state to save: see `pipeline.train.loop.loop`.

    Attributes:
        iteration: optimiser steps done so far, over all epochs.
        best: highest validation figure so far.
        history: figures of each validation.
    """

    iteration: int = 0
    best: float | None = None
    history: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Saved:
    """A run as it was saved.

    Attributes:
        checkpoint: the model, averaged where an average is kept.
        state: of `optimizer_state`, and of the trained weights where they differ from the checkpoint's.
        position: where training stood.
        settings: what the run was started with, see `CheckpointFolder.save_last`.
    """

    checkpoint: Checkpoint
    state: dict[str, Tensor]
    position: Position
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained."""
        return _below(self.state, _WEIGHTS) or self.checkpoint.weights


def holds_training(uri: Uri, names: frozenset[str]) -> bool | None:
    """Whether the files with such names are of a training, as the header of ``last`` says; ``None``: there is none."""
    if LAST not in names:
        return None
    objects = open_objects(uri, _TIMEOUT_S)
    try:
        num_bytes = int.from_bytes(objects.read_range(LAST, 0, 8), "little")
        if num_bytes > _MAX_HEADER_BYTES:
            return False
        header = json.loads(objects.read_range(LAST, 8, 8 + num_bytes))
        return "training" in json.loads(header["__metadata__"]["source"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


class CheckpointFolder:
    """The files of one run.

    Args:
        uri: of the folder; nothing is created before the first write.
        fence: called right before each file is written or removed; raises if this run must not write any more: one
            that slept through its lease must not replace or remove what the next has saved.
    """

    def __init__(self, uri: Uri, fence: Callable[[], None] = lambda: None) -> None:
        self._uri = uri
        self._fence = fence
        self._shown = str(uri).rstrip("/")
        self._objects = open_objects(uri, _TIMEOUT_S)

    def save_last(
        self,
        checkpoint: Checkpoint,
        optimizer: Mapping[str, Tensor],
        position: Position,
        trained: Mapping[str, Tensor] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace ``last`` and its state.

        Args:
            checkpoint: the model, averaged where an average is kept.
            optimizer: its tensors, as `optimizer_state` names them.
            position: where training stands, and goes on from.
            trained: the weights that are trained, where they are not the checkpoint's.
            settings: JSON-able; whoever resumes gets it back.

        Raises:
            LockLost, Changed: another run writes there.
            OSError: the storage fails.
        """
        state = {_OPTIMIZER + name: tensor for name, tensor in optimizer.items()}
        state |= {_WEIGHTS + name: tensor for name, tensor in (trained or {}).items()}
        name = f"state-{position.iteration:08d}.safetensors"
        self._fence()
        with _sent(self._objects, self._uri, name) as path:
            write_safetensors(_on_cpu(state), path, {"weights_sha256": weights_digest(state)})
        training = {"position": asdict(position), "settings": dict(settings or {}), "state": name}
        self._fence()
        with _sent(self._objects, self._uri, LAST) as path:
            save_checkpoint(replace(checkpoint, source={**checkpoint.source, "training": training}), path)
        for entry in self._objects.list("").files:
            is_old = _STATE.fullmatch(entry.name) and entry.name != name
            if is_old or _LEFTOVER.fullmatch(entry.name):
                self._fence()
                self._objects.delete(entry.name, entry)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Replace ``best``; raises what `save_last` does."""
        self._fence()
        with _sent(self._objects, self._uri, BEST) as path:
            save_checkpoint(checkpoint, path)

    def load_last(self) -> Saved | None:
        """What to go on from; ``None`` where nothing was saved.

        Raises:
            CheckpointError: a file is damaged, or ``last`` was put there by someone else.
        """
        with _fetched(self._objects, self._uri, LAST) as path:
            if path is None:
                return None
            checkpoint = load_checkpoint(path)
        training = checkpoint.source.get("training")
        if training is None:
            raise CheckpointError(
                f"{self._shown}/{LAST} is a model without a record of training: choose another output folder, "
                "and give the file as the start"
            )
        try:
            position = Position(**{**training["position"], "history": tuple(training["position"]["history"])})
            name, settings = str(training["state"]), dict(training["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self._shown}/{LAST}: its record of training is damaged ({type(error).__name__}: {error})"
            ) from None
        source = {key: value for key, value in checkpoint.source.items() if key != "training"}
        return Saved(replace(checkpoint, source=source), self._load_state(name), position, settings)

    def _load_state(self, name: str) -> dict[str, Tensor]:
        with _fetched(self._objects, self._uri, name) as path:
            if path is None:
                raise CheckpointError(f"{self._shown}/{name}, which {LAST} belongs to, is not there")
            state, header, _ = read_weights(path)
        if header.get("weights_sha256") != weights_digest(state):
            raise CheckpointError(f"{self._shown}/{name}: this is not what was written; it is damaged")
        return state


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors as ``<parameter>/<kind>``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{kind}": tensor
        for parameter, tensors in optimizer.state.items()
        for kind, tensor in tensors.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave, as it is in `Saved.state`.

    Raises:
        CheckpointError: a parameter of the model has no state, or the state is of another model.
    """
    own = _below(state, _OPTIMIZER)
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in own.items():
        name, _, kind = key.rpartition("/")
        by_parameter.setdefault(name, {})[kind] = tensor
    if own and set(by_parameter) != {names[parameter] for parameter in parameters}:
        raise CheckpointError("the state of the optimiser is not that of this model")
    tensors = {i: by_parameter[names[parameter]] for i, parameter in enumerate(parameters) if own}
    optimizer.load_state_dict({"state": tensors, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


@contextmanager
def _sent(objects: ObjectFolder, uri: Uri, name: str) -> Iterator[Path]:
    """A path to write to; the file is then in the folder, whole."""
    if uri.local_path is not None:
        yield Path(uri.local_path) / name
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        yield path
        with pa.memory_map(str(path)) as file:
            objects.put(name, file.read_buffer())


@contextmanager
def _fetched(objects: ObjectFolder, uri: Uri, name: str) -> Iterator[Path | None]:
    """A local copy of the file, or the file itself; ``None`` if it is not there."""
    if uri.local_path is not None:
        path = Path(uri.local_path) / name
        yield path if path.exists() else None
        return
    try:
        content, _ = objects.read(name)
    except FileNotFoundError:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        del content
        yield path
