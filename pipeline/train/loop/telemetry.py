"""What people see of a training: a log line now and then, and the same figures in TensorBoard."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from pipeline.messages.timing import duration
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.train.distributed import mean_over_workers, num_workers, worker_rank

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"


@dataclass(frozen=True)
class Step:
    """An optimiser step of this worker.

    Attributes:
        iteration: number of the step in the training, from 0.
        losses: weighted parts of the loss, by name.
        lr: that it was taken with.
        grad_norm: L2 norm over all parameters, before clipping.
        num_images: images in this worker's batch.
    """

    iteration: int
    losses: Mapping[str, float]
    lr: float
    grad_norm: float
    num_images: int

    @property
    def total(self) -> float:
        """The loss."""
        return sum(self.losses.values())


class Curves:
    """TensorBoard's files in ``tensorboard/`` of an output.

    Args:
        uri: of the output. On an object store the files are put there anew at each `flush`.
        first: steps done already; what an earlier run has drawn beyond them is hidden.
    """

    def __init__(self, uri: Uri, first: int) -> None:
        self._remote = None if uri.local_path is not None else open_objects(uri)
        self._scratch = tempfile.TemporaryDirectory() if self._remote else None
        folder = self._scratch.name if self._scratch else os.path.join(uri.local_path or "", FOLDER)
        self._folder = Path(folder)
        self._writer = SummaryWriter(folder, purge_step=first + 1)

    def scalar(self, name: str, value: float, iteration: int) -> None:
        """Add a point to a curve."""
        self._writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        """Make all points visible."""
        self._writer.flush()
        if self._remote is not None:
            for path in self._folder.iterdir():
                self._remote.put(f"{FOLDER}/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()


class Telemetry:
    """Collects steps and speaks every few.

    Args:
        curves: ``None``: there are none. Only worker 0 has them.
        every: steps between two lines.
        num_iterations: of the whole training.
        iterations_per_epoch: steps in an epoch, at whose end there is always a line.
        device: where means over workers are made.
    """

    def __init__(
        self,
        curves: Curves | None,
        every: int,
        num_iterations: int,
        iterations_per_epoch: int,
        device: torch.device,
    ) -> None:
        self._curves = curves
        self._every = every
        self._num_iterations = num_iterations
        self._per_epoch = iterations_per_epoch
        self._device = device
        self._forget()

    def take(self, step: Step) -> None:
        """Count a step. All workers take the same number."""
        for name, value in {**step.losses, "grad_norm": step.grad_norm}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._num_steps += 1
        self._num_images += step.num_images
        if self._num_steps == self._every or (step.iteration + 1) % self._per_epoch == 0:
            self._speak(step)

    def saved(self) -> None:
        """A checkpoint was written: so are the curves. The time since the last step went into something else."""
        if self._curves is not None:
            self._curves.flush()
        self._forget()

    def figures(self, iteration: int, values: Mapping[str, float]) -> None:
        """The figures of a validation after this many steps."""
        if worker_rank() == 0:
            shown = " ".join(f"{name} {values[name]:.4f}" for name in ("segm_mAP", "segm_mAP_50", "bbox_mAP"))
            logger.info("validation after epoch %d: %s", iteration // self._per_epoch, shown)
            for name, value in values.items():
                self._scalar(f"validation/{name}", value, iteration)

    def _speak(self, step: Step) -> None:
        means = mean_over_workers({name: total / self._num_steps for name, total in self._sums.items()}, self._device)
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rate = self._num_images * num_workers() / seconds
        done = step.iteration + 1
        left = (self._num_iterations - done) * seconds / self._num_steps
        self._forget()
        if worker_rank() != 0:
            return
        grad_norm = means.pop("grad_norm")
        total = sum(means.values())
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        logger.info(
            f"epoch {step.iteration // self._per_epoch + 1} iteration {done}/{self._num_iterations} loss {total:.4f} "
            f"({parts}) gradient {grad_norm:.3g} lr {step.lr:.3g} {rate:.2f} img/s, {duration(left)} to go"
        )
        curves = {f"loss/{name}": value for name, value in means.items()}
        curves |= {"loss/total": total, "training/lr": step.lr, "training/gradient_norm": grad_norm}
        curves |= {"training/images_per_second": rate, "training/epoch": done / self._per_epoch}
        for name, value in curves.items():
            self._scalar(name, value, done)

    def _scalar(self, name: str, value: float, iteration: int) -> None:
        if self._curves is not None:
            self._curves.scalar(name, value, iteration)

    def _forget(self) -> None:
        self._sums: dict[str, float] = {}
        self._num_steps = self._num_images = 0
        self._since = time.perf_counter()
