"""``--dry-run``: everything a run would stumble over, checked beforehand, and the plan."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.config import AnnotateConfig, ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import ReadUnit
from pipeline.annotate.pending.antijoin import (
    MARKED_BEFORE,
    Comparison,
    Pending,
    check_doubled,
    check_listing,
    find_pending,
)
from pipeline.annotate.plan import assumed_seconds_per_image, make_plan
from pipeline.annotate.prepare import ChosenModel, check_against, choose_model, make_identity
from pipeline.annotate.stages.ordering import ROWS_PER_WINDOW, BatchOrder, Sizes
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import ANNOTATIONS, PROBE, OutputStore
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.schema import output_schema
from pipeline.messages.counts import counted
from pipeline.messages.examples import Examples
from pipeline.messages.timing import duration
from pipeline.model.settings import TestSettings
from pipeline.storage.lock.claim import check_own
from pipeline.storage.lock.holder import is_dead, read_holder
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.base import ReadFailed
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import temporary_name, without_new_folders
from pipeline.tables.binary import binary_views

if TYPE_CHECKING:
    from pipeline.annotate.pool import Pool
    from pipeline.model.files.checkpoints import Checkpoint

SAMPLE_IMAGES = 32
TIMED_IMAGES = 2
_LOOKS = 3
_READ_BYTES = 8 << 20  # of a row group with images in it: what stands before a row is read with it
_READERS = 8
# Whose sizes are looked up in the manifest, and how many rows of each: some windows in all.
_SIZED_UNITS, _SIZED_ROWS = 64, ROWS_PER_WINDOW

Looked = TypeVar("Looked")


def dry_run(config: AnnotateConfig) -> str:
    """Check weights, manifest, output, a sample of the images and resources; say what a run would do.

    It may be asked beside a run at work: nothing in the output is changed but for files under hidden names that
    nobody else has, which show that the output can be written, here and on the nodes of a cluster, and are removed.

    Returns:
        Some lines for people.

    Raises:
        What `annotate` raises before it starts; OSError where the output cannot be written.
    """
    store = OutputStore(config.output.uri)
    check_own(store.uri, ANNOTATIONS)
    model = choose_model(config)
    identity = make_identity(config, model.header, "dry-run")
    store.look().check_identity(identity)
    with without_new_folders(store.uri.local_path):
        _write_probe(store)
        return _look(config, store, model, identity)


def _look(config: AnnotateConfig, store: OutputStore, model: ChosenModel, identity: Identity) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        fetcher = PictureSource.of_config(config.images).fetcher
        manifest = open_manifest(config.manifest, Uri(scratch), fetcher, store.uri)
        check_against(config.drift, manifest.id_type)
        found = _steady(lambda: _find_pending(store, manifest, identity, config.manifest))
        pending = found.all_to_do()
        settings, batch_size, block = model.settings, config.model.batch_size, config.images_per_block
        order = BatchOrder(settings.short_side, settings.long_side, batch_size, block)
        decoded = _decode_sample(config, order, sample_rows(manifest, pending))
        known = _known_sizes(manifest, pending)
    header = (
        f"model      {model.header.variant.name}, {counted(len(model.header.categories), 'category', 'categories')}, "
        f"weights {model.header.weights_sha256[:12]}, {config.model.precision}"
    )
    writable = f"output     {config.output.uri}: writable{_at_work(store.uri)}"
    changes = _changes(found, config.manifest.deleted)
    if not pending.num_pending:  # then the run needs no cluster either
        images = f"images     {pending.num_rows:,} in the manifest, 0 to do"
        return "\n".join([header, writable, *changes, images])
    checkpoint = model.load()
    # Here and not above: Ray and the model's packages take ten seconds to import.
    import ray

    from pipeline.annotate.graph import rows_together, warn_of_store
    from pipeline.annotate.pool import choose_pool
    from pipeline.cluster.connect import cluster_line, connect, describe_cluster
    from pipeline.cluster.shared import check_shared
    from pipeline.model.speed import check_compile_cache

    cache = config.model.compile_folder
    if cache and os.path.lexists(cache):  # else the replicas make it
        check_compile_cache(cache)
    with connect(config.resources.ray_address):
        check_shared({"output.uri": store.uri}, config.manifest.read_by_workers())
        cluster, pool = describe_cluster(), choose_pool(config.resources, to_come=True)
        together = rows_together(manifest, pending, block, ray.cluster_resources().get("CPU", 0.0))
        small_store = warn_of_store(config, settings, pool, checkpoint.num_bytes)
        free_cpus = ray.cluster_resources().get("CPU", 0.0) - pool.cpus * pool.max_actors
    seconds, measured = _seconds_per_image(config, checkpoint, model.settings, decoded, pool)
    lines = [
        header,
        f"cluster    {cluster_line(cluster)}{_waits(config, pool, cluster['gpus'])}",
        writable,
        f"sample     {_sample_line(decoded, pending.num_pending)}",
        *changes,
        *([f"warning    {small_store}"] if small_store else []),
    ]
    if seconds is None:
        lines.append(
            f"images     {pending.num_rows:,} in the manifest, {pending.num_pending:,} to do\n"
            "time       unknown: a model of its own size, and no device like the replicas' here to measure it on"
        )
        return "\n".join(lines)
    fill, sizes_from = _batch_fill(known, _sizes(decoded), order, together)
    plan = make_plan(
        images=pending.num_rows,
        pending=pending.num_pending,
        batch_size=config.model.batch_size,
        batch_fill=fill,
        sizes_from=sizes_from,
        images_per_block=config.images_per_block,
        images_per_file=config.output.images_per_file,
        actors=(pool.min_actors, pool.max_actors),
        gpus_per_actor=pool.gpus,
        seconds_per_image=seconds,
        measured=measured,
        cluster_cpus=max(0.0, free_cpus),
        price_per_gpu_hour=config.resources.price_per_gpu_hour,
    )
    return "\n".join([*lines, plan.text()])


def _waits(config: AnnotateConfig, pool: Pool, gpus: float) -> str:
    """Whether a run would wait for more GPUs than the cluster has; such replicas are in the plan."""
    if pool.gpus * pool.min_actors <= gpus:
        return ""
    return f"; the run waits up to {duration(config.resources.wait_for_gpus_s)} for GPUs"


def _steady(look: Callable[[], Looked]) -> Looked:
    """A look at the output, again where a run beside it has just replaced one of its files."""
    for _ in range(_LOOKS - 1):
        with suppress(ReadFailed):
            return look()
    return look()


def _find_pending(store: OutputStore, manifest: Manifest, identity: Identity, config: ManifestConfig) -> Pending:
    schema = output_schema(manifest.id_type, manifest.carried)
    files = store.look()
    files.check_identity(identity, schema)
    comparison = Comparison.of(config, manifest, bool(files.counts.deleted))
    columns = ("image_id",) if comparison is None else comparison.columns
    settled = {} if files.in_the_way(identity, schema) else files.settled
    rows = store.iter_ids(settled, columns)
    done = rows if comparison is not None else (table["image_id"] for table in rows)
    found = find_pending(manifest, done, comparison=comparison)
    check_doubled(found, store, files)
    check_listing(found, config, store.uri, files.counts)
    return found


def _changes(found: Pending, deleted: str) -> list[str]:
    """What of it are pictures that changed, or are gone, where that was asked for."""
    if found.gone is None:
        return []
    gone = f", {found.unknown_done.count:,} gone ({deleted})" if found.unknown_done.count else ""
    unknown = f", {found.num_unknown:,} of unknown version" if found.num_unknown else ""
    marked = f", {found.num_marked:,} {MARKED_BEFORE}" if found.num_marked and deleted == "drop" else ""
    return [f"changes    {found.num_pending:,} new, {found.num_changed:,} changed{gone}{marked}{unknown}"]


def _write_probe(store: OutputStore) -> None:
    objects, name = open_objects(store.uri, store.timeout_s), temporary_name(PROBE)
    objects.put(name, b"written by a dry run, to see whether it can be")
    objects.delete(name)


def _at_work(uri: Uri) -> str:
    """Which run has the lock, as far as that can be told without waiting for its lease."""
    holder = read_holder(uri)
    if holder is None or holder.released or is_dead(holder):
        return ""
    return f"; {holder} has its lock: it is writing there now, unless it was killed"


def sample_rows(manifest: Manifest, pending: Pending) -> pa.Table:
    """Some of the pending rows, from the whole manifest: one from each of as many equal parts, the same every time.

    Of a row group that holds the images themselves the first part is looked at, so that it need not be read whole.

    Returns:
        At most `SAMPLE_IMAGES` rows, in the order of the manifest, with its schema.
    """

    def read(drawn: tuple[ReadUnit, NDArray[np.int64], NDArray[np.int64]]) -> list[pa.Table]:
        unit, rows, places = drawn
        if manifest.columns.bytes is not None:
            within = int(np.searchsorted(rows, manifest.num_rows_within(unit, _READ_BYTES)))
            if (near := max(within, len(places))) < len(rows):
                places = np.arange(len(places)) * near // len(places)
        return list(manifest.read_rows(unit, rows[places], len(places)))

    tables = map_ahead(read, _drawn(pending), _READERS, SAMPLE_IMAGES)
    return pa.concat_tables([manifest.schema.empty_table(), *chain.from_iterable(tables)])


def _drawn(pending: Pending) -> Iterator[tuple[ReadUnit, NDArray[np.int64], NDArray[np.int64]]]:
    """Units, their pending rows, and which of those were drawn."""
    count = min(SAMPLE_IMAGES, pending.num_pending)
    edges = np.arange(count + 1) * pending.num_pending // max(1, count)
    drawn = np.random.default_rng(pending.num_pending).integers(edges[:-1], edges[1:])
    start = 0
    for unit, rows in pending.iter_units():
        first, last = np.searchsorted(drawn, [start, start + len(rows)])
        if last > first:
            yield unit, rows, drawn[first:last] - start
        start += len(rows)


def _decode_sample(config: AnnotateConfig, order: BatchOrder, rows: pa.Table) -> pa.Table:
    """Fetched and decoded as a run would; failures are rows."""
    from pipeline.annotate.stages.fetch_decode import FetchDecode
    from pipeline.annotate.stages.guard import InProcessGuard

    pictures = PictureSource.of_config(config.images)
    stage = FetchDecode(pictures, order, InProcessGuard(), report=lambda counts: None)
    return pa.concat_tables(stage(rows))


def _sizes(decoded: pa.Table) -> Sizes:
    good = decoded.filter(decoded["error_code"].is_null())
    return np.stack([good[name].to_numpy() for name in ("height", "width")], axis=1).astype(np.int64)


def _batch_fill(known: Sizes, sampled: Sizes, order: BatchOrder, together: tuple[int, int]) -> tuple[float, str]:
    """How full batches will be, and what says so: rows go the way of the job.

    Args:
        known: what the manifest says of some of the rows.
        sampled: of the pictures that were decoded.
        order: of the job.
        together: rows that are ordered together, read and fetched.
    """
    rng = np.random.default_rng(len(known))
    is_known = np.all(known > 0, axis=1)
    source = "the sizes in the manifest" if is_known.any() else "the sample's sizes"
    draw_from = known[is_known] if is_known.any() else sampled
    if not len(draw_from) or not len(known):
        return 1.0, ""
    actual = np.where(is_known[:, None], known, _more_sizes(draw_from, len(known), rng))
    return min(1.0, len(actual) / (order.expected_calls(known, actual, *together) * order.batch_size)), source


def _known_sizes(manifest: Manifest, pending: Pending) -> Sizes:
    """What the manifest says of some windows of pending rows: all, or some of units from the whole manifest."""
    units = list(pending.packed)
    chosen = [units[i] for i in sorted({i * len(units) // _SIZED_UNITS for i in range(_SIZED_UNITS)})] if units else []

    def read(entry: tuple[ReadUnit, NDArray[np.uint8]]) -> Sizes:
        unit, bits = entry
        rows = np.flatnonzero(np.unpackbits(bits, count=unit.num_rows))[:_SIZED_ROWS]
        return manifest.read_sizes(unit)[rows]

    return np.concatenate([np.zeros((0, 2), np.int64), *map_ahead(read, chosen, _READERS, _SIZED_UNITS)])


def _more_sizes(sizes: Sizes, count: int, rng: np.random.Generator) -> Sizes:
    """As many more of the kind. Sizes that are there once stand for all those between them and the next ones in shape.

    Drawn as they are, a few sizes would give fuller batches than all those of a large set.
    """
    _, places, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    alone = np.flatnonzero(counts[places.ravel()] == 1)
    alone = alone[np.argsort(sizes[alone, 0] / sizes[alone, 1], kind="stable")]
    drawn = rng.integers(0, len(sizes), count)
    found = sizes[drawn]
    place = np.full(len(sizes), -1)
    place[alone] = np.arange(len(alone))
    is_alone = place[drawn] >= 0
    neighbours = np.clip(place[drawn[is_alone]] + rng.choice([-1, 1], is_alone.sum()), 0, max(0, len(alone) - 1))
    share = rng.random((len(neighbours), 1))
    found[is_alone] = np.rint(found[is_alone] * (1 - share) + sizes[alone[neighbours]] * share)
    return found


def _sample_line(decoded: pa.Table, num_pending: int) -> str:
    rows = decoded.select(["image_id", "error_code", "width", "height"]).to_pylist()
    good, failed = [row for row in rows if not row["error_code"]], [row for row in rows if row["error_code"]]
    parts = [f"{len(good)} of {counted(len(rows), 'image')} fetched and decoded, drawn from all {num_pending:,} to do"]
    if good:
        sizes = sorted((row["width"] * row["height"], f"{row['width']} x {row['height']}") for row in good)
        smallest, largest = sizes[0][1], sizes[-1][1]
        parts.append(f"{smallest} pixels" if smallest == largest else f"{smallest} to {largest} pixels")
    if failed:
        examples = Examples.of(f"{row['image_id']}: {row['error_code']}" for row in failed)
        parts.append(f"failed: {examples}")
    return "; ".join(parts)


def _seconds_per_image(
    config: AnnotateConfig, checkpoint: Checkpoint, settings: TestSettings, decoded: pa.Table, pool: Pool
) -> tuple[float | None, bool]:
    """Measured where this machine has a device like the replicas', else assumed where figures are published."""
    import torch

    from pipeline.annotate.stages.segment import model_not_finite
    from pipeline.model.detector import NotFinite
    from pipeline.model.predictor import load_model

    good = decoded.filter(decoded["error_code"].is_null())[:TIMED_IMAGES]
    if len(good) == 0 or (pool.gpus and not torch.cuda.is_available()):
        guess = assumed_seconds_per_image(
            checkpoint.variant.name, settings.short_side, settings.long_side, bool(pool.gpus), pool.cpus
        )
        return guess, False
    shapes = zip(good["pixels_height"].to_pylist(), good["pixels_width"].to_pylist(), strict=True)
    images = [
        np.frombuffer(view, np.uint8).reshape(*shape, 3)  # type: ignore[arg-type]  # good rows have pixels
        for view, shape in zip(binary_views(good["pixels"]), shapes, strict=True)
    ]
    sizes = list(zip(good["height"].to_pylist(), good["width"].to_pylist(), strict=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, round(pool.cpus)) if not pool.gpus else threads)
    try:
        model = load_model(checkpoint, "cuda" if pool.gpus else "cpu", config.model.precision, settings)
        model.predict(images[:1], image_sizes=sizes[:1])  # warm up
        started = time.perf_counter()
        model.predict(images, config.model.batch_size, sizes)
        return (time.perf_counter() - started) / len(images), True
    except NotFinite as error:
        raise model_not_finite(error, config.model.precision) from error
    finally:
        torch.set_num_threads(threads)
