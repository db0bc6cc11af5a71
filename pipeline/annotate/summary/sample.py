"""A few pictures of an output with what was found on them, for its page.

They are drawn in a process of their own, which is ended when its time is over: a mount may hang, a picture may have
become one that takes the process with it, and neither is to hold up or harm a run that has done its work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations.data_folder import DataFolder
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.rows import COLUMNS, Row, evenly, first_rows
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import ANNOTATED
from pipeline.drawing.draw import DrawOptions
from pipeline.drawing.rows import row_objects, row_uri
from pipeline.page.thumbnails import Overlay, Thumbnail, thumbnail
from pipeline.storage.objects.base import Entry
from pipeline.storage.uris import Uri, hide_secrets

SHOWN_SCORE = 0.3
_FILES_AT_ONCE = 2  # their masks are in memory
_LAST_WAIT_S = 2.0  # for a process that was killed; one that a mount holds does not even end then
# Python looks in the current directory first, where packages of the user's may be called as ours are.
_COMMAND = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import draw_here; draw_here()"


@dataclass(frozen=True)
class SampleCard:
    """An image of the sample.

    Attributes:
        image_id: as text.
        shown: detections that are drawn, those from `SHOWN_SCORE` on.
        weaker: detections below it.
        picture: ``None`` if there is none, and ``reason`` says why.
        reason: why there is no picture.
    """

    image_id: str
    shown: int
    weaker: int
    picture: Thumbnail | None
    reason: str = ""


@dataclass(frozen=True)
class Sample:
    """What was drawn in the time that there was; ``missing`` says why that is not all of it, or ""."""

    cards: tuple[SampleCard, ...] = ()
    missing: str = ""


def draw_sample(uri: Uri, files: Sequence[Entry], num_images: int, timeout_s: float) -> Sample:
    """Draw annotated images of an output with a ``run.json``.

    The pictures are read as the run read them.

    Args:
        uri: of the output folder.
        files: to take them from evenly.
        num_images: at most.
        timeout_s: for all of it; what is drawn by then is kept.
    """
    task = {"uri": uri.secret_text, "files": files, "num_images": num_images, "timeout_s": timeout_s}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the run
        )
        missing = ""
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps(task).encode())
            if process.wait(timeout_s):
                missing = f"the process that draws them ended early ({_last_line(errors) or process.returncode})"
        except subprocess.TimeoutExpired:
            missing = f"drawing them took longer than {timeout_s:g} s"
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_WAIT_S)
        return Sample(tuple(_cards(out)), missing)


def draw_here() -> None:
    """The other process: a line of JSON for each card, as soon as there is one."""
    task = json.load(sys.stdin)
    signal.setitimer(signal.ITIMER_REAL, task["timeout_s"] + _LAST_WAIT_S)  # if the run dies meanwhile
    for place, card in sample_cards(Uri(task["uri"]), [Entry(*file) for file in task["files"]], task["num_images"]):
        print(json.dumps([place, asdict(card)]), flush=True)


def sample_cards(uri: Uri, files: Sequence[Entry], num_images: int) -> Iterator[tuple[int, SampleCard]]:
    """The cards with their places, in any order, one picture in memory at a time.

    Raises:
        OutputError: the output is damaged.
    """
    run = RunJson.read(uri)
    if run is None:
        return
    source = PictureSource.of_run(run)
    folder = DataFolder(uri, _FILES_AT_ONCE)
    first = first_rows(folder, files, COLUMNS, lambda table: _annotated(table, num_images), _FILES_AT_ONCE)
    by_file = [rows for rows in first if rows]
    shares = [num_images // max(1, len(by_file)) + (i < num_images % max(1, len(by_file))) for i in range(len(by_file))]
    rows = [row for found, share in zip(by_file, shares, strict=True) for row in evenly(found, share)]
    for i, data in source.fetch_in_turn([row_uri(row) for row in rows]):
        decoded = source.decode(data)
        yield i, _card(rows[i], decoded if isinstance(decoded, ImageFailure) else decoded.pixels)


def _annotated(table: pa.Table, most: int) -> list[Row]:
    places = pc.indices_nonzero(pc.equal(table["status"], ANNOTATED)).to_pylist()
    return table.take(evenly(places, most)).to_pylist()


def _card(row: Row, picture: Any) -> SampleCard:
    options = DrawOptions(min_score=SHOWN_SCORE)
    shown = sum(found["score"] >= SHOWN_SCORE for found in row["detections"])
    card = SampleCard(hide_secrets(str(row["image_id"])), shown, len(row["detections"]) - shown, None)
    objects = picture if isinstance(picture, ImageFailure) else row_objects(row, picture, options)
    if isinstance(objects, ImageFailure):
        return SampleCard(card.image_id, shown, card.weaker, None, f"{objects.code}: {objects.message}")
    overlay = Overlay(objects.boxes, objects.labels, objects.scores, objects.rles)
    return SampleCard(card.image_id, shown, card.weaker, thumbnail(picture, overlay, objects.categories))


def _cards(out: IO[bytes]) -> list[SampleCard]:
    out.seek(0)
    found: dict[int, SampleCard] = {}
    for line in out:
        if line.endswith(b"\n"):  # else it was being written
            place, values = json.loads(line)
            picture = values.pop("picture")
            found[place] = SampleCard(picture=None if picture is None else Thumbnail(**picture), **values)
    return [found[place] for place in sorted(found)]


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return hide_secrets(lines[-1])[:300] if lines else ""
