"""What a run will take, before it starts: images, batches, files, hours. Arithmetic only; no Ray, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.messages.counts import counted
from pipeline.messages.timing import duration
from pipeline.model.architectures import giga_macs

# One driver's scheduling loop was measured at 13 ms of CPU a block, and 20 to 30 blocks/s on a busy machine.
DRIVER_BLOCKS_PER_SECOND = 20.0
# Fetch, decode, rasterise and encode of an image with many objects, on one core.
CPU_SECONDS_PER_IMAGE = 0.015

_LONGEST_ASPECT = 1.6  # few pictures are wider
# Published frame rates (11 to 13 images/s on V100 and A100 for the largest of the published detectors) and 12 s an
# image of the smallest on two CPU cores, turned into operations. Faster devices and bf16 do better.
_GPU_OPERATIONS_PER_SECOND = 23e12
_CORE_OPERATIONS_PER_SECOND = 0.06e12


@dataclass(frozen=True)
class Plan:
    """What is to do, and what it costs.

    Attributes:
        images: rows of the manifest.
        pending: those that the output does not hold yet.
        batches: calls of the model: only images of one padded shape share a batch.
        batch_fill: of the room in them, the share that images take.
        sizes_from: what says how large the images are; "" where nothing does, and batches are taken to be full.
        blocks: units that travel, and are redone, together.
        files: Parquet files to be written.
        min_actors: replicas of the model at the start; all of them if the pool is fixed.
        max_actors: most replicas that the pool grows to.
        gpus_per_actor: GPUs of a replica; 0 on CPUs.
        seconds_per_image: time that one replica needs for an image.
        measured: whether that is a measurement or an assumption.
        images_per_second: rate of ``max_actors`` replicas, or of as many as there are blocks to give them.
        hours: with ``max_actors`` replicas that are always busy, start-up not counted.
        longest_hours: the same with ``min_actors`` replicas, should the pool never grow.
        gpu_hours: independent of the number of replicas.
        cost: of these, in the currency of their price; ``None`` where that is not known.
        cpus_beside: cores that fetching and encoding keep busy at that rate.
        warnings: what will make the estimate wrong, for people.
    """

    images: int
    pending: int
    batches: int
    batch_fill: float
    sizes_from: str
    blocks: int
    files: int
    min_actors: int
    max_actors: int
    gpus_per_actor: float
    seconds_per_image: float
    measured: bool
    images_per_second: float
    hours: float
    longest_hours: float
    gpu_hours: float
    cost: float | None
    cpus_beside: float
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Some lines for people."""
        actors = f"{self.max_actors}"
        hours = duration(self.hours * 3600)
        if self.min_actors != self.max_actors:
            actors = f"{self.min_actors} to {self.max_actors}"
            hours += f" ({duration(self.longest_hours * 3600)} if the pool stays at {self.min_actors})"
        device = f"{self.gpus_per_actor:g} GPU each" if self.gpus_per_actor else "on CPUs"
        price = "" if self.cost is None else f" for {self.cost:,.2f}"
        origin = "measured" if self.measured else "assumed: the real speed may differ by a lot"
        lines = [
            f"images     {self.images:,} in the manifest, {self.images - self.pending:,} done, {self.pending:,} to do",
            f"work       {self._batches()} in {counted(self.blocks, 'block')}, {counted(self.files, 'Parquet file')}",
            f"replicas   {actors}, {device}",
            f"speed      {self.seconds_per_image:.3g} s an image and replica ({origin}), "
            f"{self.images_per_second:.3g} images/s in all",
            f"time       {hours}, start-up not counted",
            f"cost       {self.gpu_hours:,.1f} GPU-hours{price}, {self.cpus_beside:.1f} cores busy with fetching and "
            "encoding",
        ]
        return "\n".join([*lines, *(f"warning    {warning}" for warning in self.warnings)])

    def _batches(self) -> str:
        batches = counted(self.batches, "batch", "batches")
        if not self.sizes_from:
            return f"at least {batches}"
        return f"about {batches}, {self.batch_fill:.0%} full by {self.sizes_from},"


def make_plan(
    *,
    images: int,
    pending: int,
    batch_size: int,
    batch_fill: float,
    sizes_from: str,
    images_per_block: int,
    images_per_file: int,
    actors: tuple[int, int],
    gpus_per_actor: float,
    seconds_per_image: float,
    measured: bool,
    cluster_cpus: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        images: rows of the manifest.
        pending: those that are not done.
        batch_size: images in a call of the model, at most.
        batch_fill, sizes_from: see `Plan`.
        images_per_block: images that travel together.
        images_per_file: rows of an output file.
        actors: fewest and most replicas.
        gpus_per_actor: GPUs of a replica; 0 on CPUs.
        seconds_per_image: of one replica, as `assumed_seconds_per_image` gives it, or better: measured.
        measured: which of the two.
        cluster_cpus: CPUs of the cluster that replicas leave free, if known.
        price_per_gpu_hour: in any currency, if known.

    Raises:
        ValueError: a count or time that makes no sense.
    """
    fewest, most = actors
    if not 0 <= pending <= images:
        raise ValueError(f"{pending} images to do of {images}")
    if min(batch_size, images_per_block, images_per_file, fewest) < 1 or most < fewest or gpus_per_actor < 0:
        raise ValueError("sizes and replicas must be at least 1, the most replicas at least the fewest")
    if not 0 < batch_fill <= 1:
        raise ValueError(f"batch_fill={batch_fill} must be above 0 and at most 1")
    if not 0 < seconds_per_image < math.inf:
        raise ValueError(f"seconds_per_image={seconds_per_image} must be positive")
    blocks = math.ceil(pending / images_per_block)
    busy = max(1, min(most, blocks))
    work_hours = pending * seconds_per_image / 3600
    gpu_hours = work_hours * gpus_per_actor
    images_per_second = busy / seconds_per_image
    return Plan(
        images=images,
        pending=pending,
        batches=math.ceil(pending / (batch_size * batch_fill)),
        batch_fill=batch_fill,
        sizes_from=sizes_from,
        blocks=blocks,
        files=math.ceil(pending / images_per_file),
        min_actors=fewest,
        max_actors=most,
        gpus_per_actor=gpus_per_actor,
        seconds_per_image=seconds_per_image,
        measured=measured,
        images_per_second=images_per_second,
        hours=work_hours / busy,
        longest_hours=work_hours / max(1, min(fewest, blocks)),
        gpu_hours=gpu_hours,
        cost=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        cpus_beside=images_per_second * CPU_SECONDS_PER_IMAGE,
        warnings=_warnings(pending, blocks, most, images_per_second, images_per_block, cluster_cpus),
    )


def assumed_seconds_per_image(
    variant: str, short_side: int, long_side: int, gpu: bool, cpus: float = 1.0
) -> float | None:
    """A cautious guess from published frame rates, for where nothing has been measured.

    Args:
        variant: name of the model's variant.
        short_side: of the model's input, in pixels.
        long_side: in pixels, at most.
        gpu: whether the replica has one.
        cpus: cores of a replica without a GPU.

    Returns:
        Seconds an image, or None for a variant whose size is not published: measure it.
    """
    operations = giga_macs(variant, short_side * min(float(long_side), short_side * _LONGEST_ASPECT))
    if operations is None:
        return None
    rate = _GPU_OPERATIONS_PER_SECOND if gpu else _CORE_OPERATIONS_PER_SECOND * max(cpus, 1.0)
    return 2e9 * operations / rate


def _warnings(
    pending: int, blocks: int, actors: int, images_per_second: float, images_per_block: int, cpus: float | None
) -> tuple[str, ...]:
    found = []
    if pending and blocks < actors:
        idle = actors - blocks
        gets = "gets" if idle == 1 else "get"
        found.append(f"{counted(blocks, 'block')} for {counted(actors, 'replica')}: {idle:,} of them {gets} no work")
    if pending and images_per_second / images_per_block > DRIVER_BLOCKS_PER_SECOND:
        found.append(
            f"{images_per_second / images_per_block:.0f} blocks/s are more than one driver schedules "
            f"({DRIVER_BLOCKS_PER_SECOND:.0f}): raise images_per_block, or split the manifest into several jobs"
        )
    needed = images_per_second * CPU_SECONDS_PER_IMAGE
    if pending and cpus is not None and needed > cpus:
        found.append(f"fetching and encoding want {needed:.1f} CPU cores and {cpus:g} are free: replicas will wait")
    return tuple(found)
