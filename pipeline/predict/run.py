"""A few pictures named on a command line, segmented in batches, and what predictions.json says of them."""

from __future__ import annotations

import glob
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.coco.results import CocoAnnotation, coco_annotations, coco_categories
from pipeline.drawing.draw import DrawOptions, draw
from pipeline.drawing.file_names import PictureNames, check_free, save_picture
from pipeline.errors import UserError
from pipeline.images.decode import ImageError, decode_image
from pipeline.images.left_out import LeftOut
from pipeline.messages.counts import counted
from pipeline.model.detections import Detections
from pipeline.model.predictor import Predictor, failure_code
from pipeline.provenance import package_versions
from pipeline.storage.uris import UriText

RESULT = "predictions.json"
_DESCRIPTION = "instance masks predicted by maskfleet"

logger = logging.getLogger(__name__)


class _Picture(NamedTuple):
    """An image that could be read."""

    id: int
    file: Path
    output_name: str
    pixels: np.ndarray


class PredictRun:
    """What has been found so far, and where it goes."""

    def __init__(self, predictor: Predictor, options: DrawOptions, out: Path) -> None:
        self.predictor, self.options, self.out = predictor, options, out
        self.images: list[dict[str, Any]] = []
        self.annotations: list[CocoAnnotation] = []
        self.failed: list[dict[str, str]] = []
        self.started = time.monotonic()

    def run(self, files: Sequence[Path], batch_size: int) -> None:
        """Segment all files, ``batch_size`` of them in memory at a time. Failures of single ones are data.

        Raises:
            DeviceLost: the device answers no more.
            InTheWay: a file of the user's has the name of one that would be written; nothing was.
            OSError: the folder cannot be written.
        """
        taken = PictureNames()
        names = [taken.of_stem(shown(Path(file.stem))) for file in files]
        check_free(self.out / RESULT, _DESCRIPTION.encode())
        for name in names:
            check_free(self.out / name)
        for start in range(0, len(files), batch_size):
            clock = time.monotonic()
            batch = []
            for i, file in enumerate(files[start : start + batch_size], start):
                pixels = self._read(file)
                if pixels is not None:
                    batch.append(_Picture(i + 1, file, names[i], pixels))
            found = list(self._predict(batch))
            share_s = (time.monotonic() - clock) / max(1, len(batch))
            for picture, detections in zip(batch, found, strict=True):
                if detections is not None:
                    self._keep(picture, detections, share_s)

    def content(self, model: str) -> dict[str, Any]:
        """predictions.json."""
        predictor = self.predictor
        info = {
            "description": _DESCRIPTION,
            "date_created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": model,
            "variant": asdict(predictor.variant),
            "weights_sha256": predictor.weights_sha256,
            "weights_source": predictor.source,
            "settings": asdict(predictor.settings),
            "precision": predictor.precision,
            "device": str(predictor.device),
            "versions": package_versions() | {"torch": str(torch.__version__)},
        }
        return {
            "info": info,
            "images": self.images,
            "categories": coco_categories(predictor.categories),
            "annotations": self.annotations,
            "failed": self.failed,
        }

    def summary(self) -> str:
        """One line for people."""
        seconds = time.monotonic() - self.started
        return (
            f"{counted(len(self.images), 'image')}, {counted(len(self.annotations), 'detection')}, "
            f"{len(self.failed)} failed "
            f"in {seconds:.1f} s ({len(self.images) / seconds:.2f} images/s)"
        )

    def _read(self, file: Path) -> np.ndarray | None:
        try:
            return decode_image(file.read_bytes()).pixels
        except ImageError as error:
            self._fail(file, error.code, str(error))
        except FileNotFoundError:
            self._fail(file, "not_found", "no such file")
        except IsADirectoryError:
            self._fail(file, "not_found", "a folder without images")
        except PermissionError:
            self._fail(file, "access_denied", "permission denied")
        except OSError as error:
            self._fail(file, "read_error", str(error))
        return None

    def _predict(self, batch: Sequence[_Picture]) -> Iterator[Detections | None]:
        """One result for each picture, None where the model failed (most likely for want of memory)."""
        outcomes = self.predictor.attempt([picture.pixels for picture in batch], batch_size=max(1, len(batch)))
        for picture, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(picture.file, failure_code(outcome), str(outcome).partition("\n")[0][:300])
            yield outcome if isinstance(outcome, Detections) else None

    def _keep(self, picture: _Picture, found: Detections, seconds: float) -> None:
        clock = time.monotonic()
        height, width = found.image_size
        categories, rles = self.predictor.categories, found.rle()
        objects = found.boxes, found.labels, found.scores, rles
        drawn = draw(picture.pixels, *objects, categories, options=self.options)
        save_picture(drawn, self.out / picture.output_name)
        self.annotations += coco_annotations(found, picture.id, categories, len(self.annotations) + 1, rles)
        self.images.append(
            {
                "id": picture.id,
                "file_name": shown(picture.file),
                "height": height,
                "width": width,
                "picture": picture.output_name,
            }
        )
        seconds += time.monotonic() - clock
        print(f"{shown(picture.file)}: {len(found)} detections, {seconds:.2f} s", flush=True)

    def _fail(self, file: Path, code: str, message: str) -> None:
        self.failed.append({"file_name": shown(file), "error_code": code, "error_message": message})
        print(f"{shown(file)}: failed: {code}: {message}", file=sys.stderr, flush=True)


def shown(file: Path) -> str:
    """A path as it can be printed and written: what is not UTF-8 in it as ``\\udcff``."""
    return file.as_posix().encode("utf-8", "backslashreplace").decode()


def find_images(named: Sequence[str], skip: Path | None = None) -> list[Path]:
    """The files meant by files, folders (searched to any depth) and glob patterns, in order, each once.

    What matches nothing stays in the list as it is: whoever reads it reports it.

    Args:
        named: as given by the user.
        skip: folders are not searched below this one: where the results go.

    Raises:
        UserError: there is not one file.
    """
    found: dict[Path, Path] = {}
    for name in named:
        path = Path(name)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        for match in matches or [path]:
            for file in (_below(match, skip) if match.is_dir() else [match]) or [match]:
                found.setdefault(file.resolve(), file)
    if not any(file.is_file() for file in found.values()):
        raise UserError(f"no image files: {', '.join(str(UriText(name)) for name in named)}")
    return list(found.values())


def _below(folder: Path, skip: Path | None) -> list[Path]:
    """The pictures in a folder, told by their names; others are counted, and the log says so. None is hidden."""
    left_out = LeftOut()
    outside = skip.resolve() if skip and skip.resolve() != folder.resolve() else None
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not (outside and outside in file.resolve().parents)
        and not left_out.takes(file.name)
    ]
    if left_out.count:
        logger.warning("%s: %s", folder, left_out)
    return found
