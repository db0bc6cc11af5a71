"""The training loop of one worker.

No random number depends on what came before: drop path and sampling of iteration i draw from seeds made of the run's
seed and i (drop path also of the worker's number), and the data of an epoch are a function of its number. So there is
no random state to save, and a run that was killed and one that was not take the same steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from pipeline.messages.timing import duration
from pipeline.model.architectures import network_of
from pipeline.model.batch import Batch
from pipeline.model.detector import Detector
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from pipeline.model.settings import SamplingConfig
from pipeline.storage.uris import Uri
from pipeline.train.distributed import parallel, worker_rank
from pipeline.train.loop.checkpoint_folder import CheckpointFolder, Position, load_optimizer_state, optimizer_state
from pipeline.train.loop.finite import NonFiniteLoss, check_finite
from pipeline.train.loop.optimizer import WeightAverage, make_optimizer, set_lr
from pipeline.train.loop.settings import LoopConfig
from pipeline.train.loop.start import Start
from pipeline.train.loop.telemetry import Curves, Step, Telemetry
from pipeline.train.loop.validate import ValidationSet, validate

logger = logging.getLogger(__name__)

MAIN_FIGURE = "segm_mAP"
VALIDATION_BATCH_SIZE = 8  # images on the device at once


class TrainingData(Protocol):
    """This worker's batches, all workers having the same number of them."""

    @property
    def iterations_per_epoch(self) -> int:
        """At least 1."""

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Those of an epoch from iteration ``start`` of it on, whatever was read before; on the model's device."""


def train(
    start: Start,
    data: TrainingData,
    validation: ValidationSet | None,
    folder: CheckpointFolder,
    settings: LoopConfig,
    device: torch.device,
    *,
    record: Mapping[str, Any] | None = None,
    save_every: int | None = None,
    curves_uri: Uri | None = None,
    on_step: Callable[[Step], None] | None = None,
    make_loss: Callable[[Detector, SamplingConfig], nn.Module] | None = None,
) -> Position:
    """Train to the end, from where ``folder`` stands.

    Args:
        start: the detector to begin with. Where the folder has a ``last``, its weights are replaced by those.
        data: this worker's batches.
        validation: the same on all workers; ``None``: there is no ``best``.
        folder: where the run's checkpoints are.
        settings: the same on all workers.
        device: where this worker computes.
        record: what the run was started with, kept in ``last``.
        save_every: iterations between two ``last`` within an epoch; ``None``: at the ends of epochs only.
        curves_uri: where worker 0 puts TensorBoard's files, see `Curves`; ``None``: nowhere.
        on_step: called after each step.
        make_loss: gives the module that maps a batch and a generator to weighted parts of the loss; ``None``: that of
            the architecture.

    Returns:
        Where training ended.

    Raises:
        NonFiniteLoss: a loss or gradient is no number; the message has the images.
        CheckpointError: the folder holds something else.
    """
    trainer = _Trainer(start, data, folder, settings, device, make_loss, record or {})
    first, last = trainer.position.iteration, settings.schedule.epochs * data.iterations_per_epoch
    with ExitStack() as stack:
        curves = None
        if curves_uri is not None and worker_rank() == 0 and first < last:
            curves = Curves(curves_uri, first)
            stack.callback(curves.close)
        trainer.telemetry = Telemetry(curves, settings.log_every, last, data.iterations_per_epoch, device)
        logger.info("%s steps of %s to go; waiting for the first pictures", f"{last - first:,}", f"{last:,}")
        started = time.perf_counter()
        for batch in _batches(data, first, last):
            step = trainer.step(batch)
            if step.iteration == first:
                seconds = duration(time.perf_counter() - started)
                logger.info("the first step is done, %s after that; a line every %d", seconds, settings.log_every)
            if on_step:
                on_step(step)
            trainer.after(step, validation, last, save_every)
    return trainer.position


def _batches(data: TrainingData, first: int, last: int) -> Iterator[Batch]:
    per_epoch = data.iterations_per_epoch
    for epoch in range(first // per_epoch, math.ceil(last / per_epoch)):
        yield from data.batches(epoch, first % per_epoch if epoch == first // per_epoch else 0)


class _Trainer:
    """What changes from step to step."""

    telemetry: Telemetry

    def __init__(
        self,
        start: Start,
        data: TrainingData,
        folder: CheckpointFolder,
        settings: LoopConfig,
        device: torch.device,
        make_loss: Callable[[Detector, SamplingConfig], nn.Module] | None,
        record: Mapping[str, Any],
    ) -> None:
        self._start, self._data, self._folder = start, data, folder
        self._settings, self._device, self._record = settings, device, record
        self._detector = start.detector
        network = network_of(start.detector.variant)
        saved = folder.load_last()
        if saved is not None:
            self._detector.load_state_dict(saved.weights)
        if settings.activation_checkpointing:
            checkpoint_activations(self._detector)
        self._detector.to(device).train()
        self._loss = parallel((make_loss or network.loss)(self._detector, settings.sampling), device)
        self._optimizer = make_optimizer(self._detector, settings.optimizer, network.decays)
        self._average = None
        if settings.optimizer.ema_decay is not None:
            self._average = WeightAverage(self._detector.state_dict(), settings.optimizer.ema_decay)
        self.position = Position()
        if saved is not None:
            load_optimizer_state(self._optimizer, self._detector, saved.state)
            if self._average is not None:
                self._average.load(saved.checkpoint.weights)
            self.position = saved.position
            logger.info("going on after iteration %d", saved.position.iteration)

    def step(self, batch: Batch) -> Step:
        """Forward, backward, and a step of the optimiser."""
        settings, iteration = self._settings, self.position.iteration
        lr = settings.optimizer.lr * settings.schedule.factor(iteration, self._data.iterations_per_epoch)
        set_lr(self._optimizer, lr)
        generator = self._seed(iteration)
        self._optimizer.zero_grad(set_to_none=True)
        with self._arithmetic():
            losses: dict[str, Tensor] = self._loss(batch, generator)
        check_finite(losses, batch)
        torch.stack(list(losses.values())).sum().backward()
        grad_norm = float(
            nn.utils.clip_grad_norm_(self._detector.parameters(), settings.optimizer.max_grad_norm or math.inf)
        )
        if not math.isfinite(grad_norm):
            images = ", ".join(map(str, batch.image_ids))
            raise NonFiniteLoss(
                f"the gradient is {grad_norm} in iteration {iteration}, with images {images} on this worker: lower the "
                "learning rate, or set optimizer.max_grad_norm"
            )
        self._optimizer.step()
        self.position = replace(self.position, iteration=iteration + 1)
        if self._average is not None:
            self._average.update(self._detector, iteration + 1)
        parts = {name: float(value.detach()) for name, value in losses.items()}
        return Step(iteration, parts, lr, grad_norm, len(batch.image_ids))

    def after(self, step: Step, validation: ValidationSet | None, num_iterations: int, save_every: int | None) -> None:
        """Speak, validate and save, where it is time to."""
        self.telemetry.take(step)
        done, per_epoch = step.iteration + 1, self._data.iterations_per_epoch
        epoch_ends = done % per_epoch == 0
        if not epoch_ends and not (save_every and done % save_every == 0):
            return
        checkpoint = self._checkpoint()
        due = epoch_ends and (done // per_epoch % self._settings.evaluate_every == 0 or done == num_iterations)
        if due and validation is not None:
            self._validate(checkpoint, validation)
        if worker_rank() == 0:
            trained = None if self._average is None else self._detector.state_dict()
            state = optimizer_state(self._optimizer, self._detector)
            self._folder.save_last(checkpoint, state, self.position, trained, self._record)
        self.telemetry.saved()

    def _validate(self, checkpoint: Checkpoint, validation: ValidationSet) -> None:
        """With a model of its own, as annotate would load it."""
        model = load_model(checkpoint, self._device, self._settings.precision)
        figures = validate(model, validation, VALIDATION_BATCH_SIZE)
        iteration = self.position.iteration
        epoch = iteration // self._data.iterations_per_epoch
        self.telemetry.figures(iteration, figures)
        history = (*self.position.history, {"epoch": epoch, "iteration": iteration, **figures})
        better = self.position.best is None or figures[MAIN_FIGURE] > self.position.best
        best = figures[MAIN_FIGURE] if better else self.position.best
        self.position = replace(self.position, best=best, history=history)
        if better and worker_rank() == 0:
            source = {**checkpoint.source, "validation": history[-1]}
            self._folder.save_best(replace(checkpoint, source=source))

    def _checkpoint(self) -> Checkpoint:
        weights = self._detector.state_dict() if self._average is None else self._average.weights
        on_cpu = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        source = {**self._start.source, "iteration": self.position.iteration}
        return Checkpoint(on_cpu, self._detector.variant, self._start.categories, self._start.settings, source)

    def _seed(self, iteration: int) -> torch.Generator:
        """Seed drop path, by worker, and give the generator of the samplers, which tell images apart themselves."""
        seed = self._settings.seed
        torch.manual_seed(_number(seed, iteration, worker_rank() + 1))
        return torch.Generator().manual_seed(_number(seed, iteration, 0))

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self._settings.precision == "bf16":
            return torch.autocast(self._device.type, torch.bfloat16)
        return nullcontext()


def _number(*parts: int) -> int:
    """A seed of 63 bits that depends on all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def checkpoint_activations(detector: Detector) -> None:
    """Have the blocks that are worth it keep their inputs only (Chen et al. 2016, arXiv 1604.06174); gradients stay."""
    blocks = network_of(detector.variant).recomputed
    for module in detector.modules():
        if isinstance(module, blocks):
            # The instance's own forward, and no wrapping module: the names of the weights are those of the files.
            module.forward = partial(recomputed, module.forward, use_reentrant=False)
