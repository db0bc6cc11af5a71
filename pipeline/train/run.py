"""The training job: Ray Train starts the workers, and each runs `pipeline.train.loop.loop` on its part of the data."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline.cluster.address import Address, ClusterError
from pipeline.cluster.cause import cause_of
from pipeline.cluster.connect import check_address, connect
from pipeline.cluster.shared import check_shared
from pipeline.cluster.worker_log import listening
from pipeline.config.base import ConfigError
from pipeline.errors import RunError, UserError
from pipeline.messages.counts import counted
from pipeline.messages.timing import duration
from pipeline.model.files.resolve import resolve_checkpoint
from pipeline.provenance import code_version, new_run_id, package_versions
from pipeline.storage.lock.claim import OutputKind, check_own
from pipeline.storage.lock.lease import Fence, OutputLock
from pipeline.storage.objects.open import open_objects
from pipeline.train.checks import check_pictures, oddities
from pipeline.train.config import TrainConfig
from pipeline.train.data.draws import Draws
from pipeline.train.inputs import Inputs, draws_of, read_inputs, validation_of
from pipeline.train.loop.checkpoint_folder import CheckpointFolder, Position, Saved, holds_training
from pipeline.train.loop.finite import NonFiniteLoss
from pipeline.train.loop.settings import BEST, LAST
from pipeline.train.loop.start import Start, build_for_training, start_from
from pipeline.train.worker import Result, Work

logger = logging.getLogger(__name__)

REPORT = "training.json"
_OWN_NAMES = re.compile(r"(last|best|state-\d{8,})\.safetensors|training\.json|tensorboard/")
_TRAINING = OutputKind("the training job", _OWN_NAMES, holds_training)


class _Trainer(TorchTrainer):
    """Leaves the signals to the job, whose contexts end what is at work."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Nothing."""


class TrainingFailed(RunError):
    """A worker stopped for a reason that is not the user's data; the message has its error."""


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        position: with the figures of all validations.
        seconds: that this run of the job took.
        unreadable: images that this run could not read and replaced by others, and why.
    """

    position: Position
    seconds: float
    unreadable: dict[int | str, str]


def train(config: TrainConfig) -> Trained:
    """Train, or go on with a training whose output is there.

    Raises:
        UserError: what the config names cannot be used; nothing was started.
        RunError: another run writes there (`LockHeld`), a loss is no number (`NonFiniteLoss`, with the images), or
            anything else (`TrainingFailed`); the same command goes on from the last checkpoint.
    """
    started = time.monotonic()
    check_address(config.resources.ray_address)
    check_own(config.output.uri, _TRAINING)
    with ExitStack() as stack:
        fence = stack.enter_context(OutputLock(config.output.uri, new_run_id())).fence()
        inputs = read_inputs(config.data, config.model.classes)
        for name, books in zip(_names(config), inputs.reports, strict=True):
            logger.info("%s: %s", name, books)
        draws = draws_of(config.data, inputs, config.augment, config.seed)
        per_epoch = draws.steps_of(config.data.batch_size * config.resources.workers)
        saved = CheckpointFolder(config.output.uri).load_last()
        is_over = saved is not None and saved.position.iteration >= config.schedule.epochs * per_epoch
        warnings = oddities(config, inputs, per_epoch)
        if not is_over:
            warnings += check_pictures(config, inputs, Address.find(config.resources.ray_address) is not None)
        for line in warnings:
            logger.warning("%s", line)
        start = _fresh(config, inputs) if saved is None else _continued(config, inputs, saved)
        for line in start.said:
            logger.info("%s", line)
        if saved is not None and is_over:
            result = Result(saved.position, {})
        else:
            del saved  # workers read it themselves
            stack.enter_context(connect(config.resources.ray_address))
            check_shared({"output.uri": config.output.uri}, config.data.read_by_workers())
            try:
                result = _fit(config, inputs, start, draws, per_epoch, fence)
            except RayActorError as error:  # the node died that Ray's own helpers ran on
                raise TrainingFailed(
                    f"Ray: {cause_of(error).line()}. The same command goes on from the last checkpoint"
                ) from error
        trained = Trained(result.position, round(time.monotonic() - started, 3), result.unreadable)
        fence()
        _write_report(config, inputs, trained, warnings)
    return trained


def _names(config: TrainConfig) -> list[str]:
    names = [f"source {source.uri}" for source in config.data.train]
    return names + ([] if config.data.validation is None else [f"validation {config.data.validation.uri}"])


def _fresh(config: TrainConfig, inputs: Inputs) -> Start:
    model = config.model
    path = None if model.start is None else resolve_checkpoint(model.start)
    start = start_from(path, model.architecture(), inputs.categories, model.drop_path, config.seed)
    return replace(start, settings=model.settings(start.settings))


def _continued(config: TrainConfig, inputs: Inputs, saved: Saved) -> Start:
    """The architecture of what was saved; the loop fills in the weights.

    Raises:
        ConfigError: the run was begun with other settings, or its data have other classes now.
    """
    here = f"{str(config.output.uri).rstrip('/')}/{LAST}"
    changed = list(_differences(saved.settings, _record(config, inputs)))
    if changed:
        raise ConfigError(
            f"{here} was made with other settings: {'; '.join(changed)}. Put them back to go on exactly, or give "
            "another output.uri"
        )
    if saved.checkpoint.categories != inputs.categories:
        raise ConfigError(f"{here} is of other classes than the data have now: give another output.uri")
    checkpoint = saved.checkpoint
    detector = build_for_training(checkpoint.variant, config.model.drop_path)
    said = f"going on with {here} after step {saved.position.iteration}"
    source = {key: value for key, value in checkpoint.source.items() if key != "iteration"}
    return Start(detector, checkpoint.categories, checkpoint.settings, source, said=(said,))


def _record(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that began; data that changed show in their counts."""
    return {**config.content(), "counts": [asdict(books) for books in inputs.reports]}


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Where two JSON-able values differ, as ``key: old, now new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield f"{at}: {json.dumps(old)}, now {json.dumps(new)}"


def _fit(
    config: TrainConfig, inputs: Inputs, start: Start, draws: Draws, iterations_per_epoch: int, fence: Fence
) -> Result:
    with tempfile.TemporaryDirectory() as storage, listening() as listener:
        work = Work(
            config=config,
            record=_record(config, inputs),
            iterations_per_epoch=iterations_per_epoch,
            draws=ray.put(draws),
            validation=ray.put(validation_of(config.data, inputs)),
            start=ray.put(start),
            listener=listener,
            folder=os.getcwd(),
            fence=fence,
        )
        trainer = _Trainer(
            work,
            scaling_config=_scaling(config),
            torch_config=TorchConfig(),
            # Nothing is stored through Ray: the loop writes its checkpoints itself, and goes on from them.
            run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=0)),
        )
        logger.info(
            "starting %s, as processes that load torch and the weights: that takes about a minute",
            counted(config.resources.workers, "worker"),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _reason(error) from error
        return Result.of_listener(ray.get(listener.result.remote()))


def _scaling(config: TrainConfig) -> ScalingConfig:
    """What Ray Train is asked for.

    Raises:
        ClusterError: the cluster has no room for it; Ray would wait for ever.
    """
    wanted, there = config.resources, ray.cluster_resources()
    gpus = wanted.gpus_per_worker
    if gpus is None:
        gpus = 1 if there.get("GPU", 0.0) >= 1 else 0
    if gpus * wanted.workers > there.get("GPU", 0.0):
        raise ClusterError(
            f"{wanted.workers} workers of {gpus} GPU do not fit on the {there.get('GPU', 0.0):g} of the cluster: "
            "lower resources.workers, or set resources.gpus_per_worker to 0 for the CPU"
        )
    cpus, for_data = wanted.cpus_per_worker, wanted.data_cpus_per_task
    if cpus * wanted.workers + for_data > there.get("CPU", 0.0):
        raise ClusterError(
            f"{wanted.workers} workers of {cpus:g} CPUs, and {for_data:g} to read pictures with, do not fit on the "
            f"{there.get('CPU', 0.0):g} of the cluster: lower resources.workers, cpus_per_worker or data_cpus_per_task"
        )
    return ScalingConfig(
        num_workers=wanted.workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": wanted.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
    )


def _reason(error: WorkerGroupError) -> Exception:
    """What a person can act on: the error of a worker itself, the data's before any that followed from it."""
    found = [getattr(failure, "_base_exc", failure) for _, failure in sorted(error.worker_failures.items())]
    for one in found:
        if isinstance(one, UserError | NonFiniteLoss):
            return one
    first = found[0] if found else error
    return TrainingFailed(f"worker: {cause_of(first).line()}; the same command goes on from the last checkpoint")


def _write_report(config: TrainConfig, inputs: Inputs, trained: Trained, warnings: Sequence[str]) -> None:
    content = {
        "iterations": trained.position.iteration,
        "best": trained.position.best,
        "history": trained.position.history,
        "seconds": trained.seconds,
        "categories": [asdict(category) for category in inputs.categories],
        "data": {name: asdict(books) for name, books in zip(_names(config), inputs.reports, strict=True)},
        "warnings": warnings,
        "unreadable": [{"image_id": image_id, "reason": reason} for image_id, reason in trained.unreadable.items()],
        "code": code_version(),
        "packages": package_versions(),
        "config": config.model_dump(mode="json"),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    open_objects(config.output.uri).put(REPORT, text.encode())


def summary(config: TrainConfig, trained: Trained) -> str:
    """The closing words."""
    position = trained.position
    lines = [f"{position.iteration:,} steps done, {duration(trained.seconds)} in this run"]
    if trained.unreadable:
        lines.append(
            f"{len(trained.unreadable):,} images could not be read, and others took their places: see {REPORT}"
        )
    figures = ("segm_mAP", "segm_mAP_50", "bbox_mAP", "bbox_mAP_50")
    lines += [
        f"epoch {row['epoch']}: " + ", ".join(f"{name} {row[name]:.4f}" for name in figures) for row in position.history
    ]
    place = str(config.output.uri).rstrip("/")
    lines.append(f"model: {place}/{LAST if position.best is None else BEST}")
    return "\n".join(lines)
