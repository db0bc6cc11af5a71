"""Draw what an annotate job found: ``python -m jobs.visualize --annotations OUTPUT --out DIR``.

Reads the pictures as the run did (its limits, its access policy, its EXIF setting) and draws boxes, labels, scores
and masks, into a file for each image or into contact sheets. Where a file cannot be called like its image,
``images.csv`` beside the files says which is which, of earlier runs' files too as long as they are there.

Exit codes: 0 every chosen image was drawn, 1 some could not be or trying again may help, 2 there was nothing to draw
or to write to, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jobs.arguments import job_parser, positive, score
from jobs.ending import FAILED, OK, ends_in_order, say, say_end
from pipeline.annotations.data_folder import no_output
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.rows import OutputRows, Row
from pipeline.annotations.run_json import RunJson
from pipeline.drawing.draw import DrawOptions, Picture, grid
from pipeline.drawing.file_names import PictureNames, check_free, save_picture
from pipeline.drawing.rows import DrawnRow, draw_rows, drawable
from pipeline.errors import UserError
from pipeline.messages.counts import counted
from pipeline.storage.file_names import split_suffix
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import write_whole
from pipeline.tables.csv_text import csv_line, csv_rows

DEFAULT_LIMIT = 16
CELL = (360, 480)  # height, width of a picture in a contact sheet
TABLE = "images.csv"
_HEADER = csv_line("picture", "image_id")
_SORTED_AT_ONCE = 512  # rows with their detections in memory


@ends_in_order("pictures that were drawn are kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    options = DrawOptions(args.boxes, args.labels, args.scores, args.masks, min_score=args.min_score)
    annotations = Uri(args.annotations)
    run = _run(annotations)
    _check_categories(args.categories, run.detections_per_category)
    source = PictureSource.of_run(run, Uri(args.image_root) if args.image_root else None)
    rows = _chosen(OutputRows(annotations), args, options)
    out.mkdir(parents=True, exist_ok=True)
    check_free(out / TABLE, _HEADER)
    book = _Book()
    drawn = book.keep(draw_rows(rows, source, options, args.categories))
    if args.grid is None:
        _write_files(drawn, out)
    else:
        _write_sheets(drawn, args.grid, out)
    if book.drawn + book.failed == 0:
        raise UserError("nothing to draw: no annotated image matches")
    told = f"{counted(book.drawn, 'image')} drawn, {counted(book.objects, 'object')}"
    say(f"{told}, {counted(book.failed, 'image')} could not be drawn: {out}")
    if book.failed:
        return say_end(FAILED, f"{book.failed} of {book.drawn + book.failed} images not drawn, each named above")
    return OK


class GridSize(NamedTuple):
    """Of a contact sheet."""

    rows: int
    columns: int


class _Book:
    """Counts what was drawn, and names what was not."""

    def __init__(self) -> None:
        self.drawn = self.failed = self.objects = 0

    def keep(self, rows: Iterable[DrawnRow]) -> Iterator[tuple[DrawnRow, Picture]]:
        """Those that could be drawn."""
        for row in rows:
            if isinstance(row.picture, ImageFailure):
                self.failed += 1
                error = row.picture
                print(f"{row.image_id}: not drawn: {error.code}: {error.message}", file=sys.stderr, flush=True)
            else:
                self.drawn += 1
                self.objects += row.num_objects
                yield row, row.picture


def _write_files(drawn: Iterable[tuple[DrawnRow, Picture]], out: Path) -> None:
    """A file for each picture; and a table of which is which, where not every file is called like its image."""
    names, owners = PictureNames(), _earlier_owners(out)
    try:
        for row, picture in drawn:
            name = names.of_id(row.image_id)
            save_picture(picture, out / name)
            owners[name] = str(row.image_id)
            say(f"{row.image_id}: {counted(row.num_objects, 'object')}: {name}")
    finally:  # however it ends, the files that are there stay
        _write_table(owners, out / TABLE)


def _earlier_owners(out: Path) -> dict[str, str]:
    """The ids of the images of earlier runs' files, by the names of these, as far as they are in a table."""
    path = out / TABLE
    content = path.read_bytes() if path.exists() else _HEADER
    rows = csv_rows(content.removeprefix(_HEADER).decode(errors="replace"))
    return {row[0]: row[1] for row in rows if len(row) == 2 and (out / row[0]).is_file()}


def _write_table(owners: Mapping[str, str], path: Path) -> None:
    if all(split_suffix(name)[0] in (image_id, split_suffix(image_id)[0]) for name, image_id in owners.items()):
        path.unlink(missing_ok=True)
        return
    with write_whole(path) as temporary:
        temporary.write_bytes(_HEADER + b"".join(csv_line(*pair) for pair in owners.items()))


def _write_sheets(drawn: Iterable[tuple[DrawnRow, Picture]], size: GridSize, out: Path) -> None:
    small = ((str(row.image_id), _fitted(picture)) for row, picture in drawn)
    number = 0
    while page := list(islice(small, size.rows * size.columns)):
        number += 1
        name = f"sheet_{number:03d}.png"
        sheet = grid([picture for _, picture in page], size.columns, CELL, [image_id for image_id, _ in page])
        save_picture(sheet, out / name)
        say(f"{counted(len(page), 'image')}: {name}")


def _fitted(picture: Picture) -> Picture:
    """Not larger than a cell: a sheet's pictures are in memory together."""
    image = Image.fromarray(picture)
    image.thumbnail((CELL[1], CELL[0]), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _run(uri: Uri) -> RunJson:
    try:
        run = RunJson.read(uri)
    except NotADirectoryError:
        run = None
    if run is None:
        raise UserError(no_output(uri, "has no run.json"))
    return run


def _check_categories(names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if known and name not in known:
            raise UserError(f"there are no detections of {name!r} in this output, only of: {', '.join(known)}")


def _chosen(rows: OutputRows, args: argparse.Namespace, options: DrawOptions) -> Iterable[Row]:
    if args.ids is not None:
        return rows.by_id(args.ids)
    limit = args.limit or (args.grid.rows * args.grid.columns if args.grid else DEFAULT_LIMIT)
    found = rows.annotated()
    if args.categories:
        found = (row for row in found if drawable(row, options, args.categories))
    chosen = islice(found, limit)
    return _sorted(chosen) if args.grid else chosen


def _sorted(rows: Iterable[Row]) -> Iterator[Row]:
    """By id, so many at a time: the order of the output's files says nothing to who looks at a sheet."""
    rest = iter(rows)
    while some := list(islice(rest, _SORTED_AT_ONCE)):
        yield from sorted(some, key=lambda row: row["image_id"])


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("visualize", __doc__)
    add = parser.add_argument
    add("--annotations", required=True, metavar="URI", help="output folder of an annotate job")
    add("--out", required=True, metavar="DIR", help="where the drawn pictures go (PNG)")
    add("--image-root", default="", metavar="URI", help="what relative image URIs are relative to (default: here)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", type=_names, metavar="A,B", help='image ids; one with a comma in it: "a,b" in quotes')
    which.add_argument(
        "--limit", type=positive, metavar="N", help=f"first N images (default: {DEFAULT_LIMIT}, or one full sheet)"
    )
    add("--grid", type=_grid_size, metavar="ROWSxCOLS", help="contact sheets of this size, not a file an image")
    add("--min-score", type=score, default=0.0, metavar="SCORE", help="lowest score that is drawn, 0 to 1")
    add("--categories", type=_names, default=[], metavar="A,B", help="only these, and only images that have them")
    for part in ("boxes", "labels", "scores", "masks"):
        add(f"--no-{part}", dest=part, action="store_false", help=f"draw no {part}")
    return parser


def _names(text: str) -> list[str]:
    names = [name for name in next(csv.reader([text]), []) if name]
    if not names:
        raise argparse.ArgumentTypeError("there is no name in it")
    return list(dict.fromkeys(names))


def _grid_size(text: str) -> GridSize:
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLS, such as 3x4")
    return GridSize(int(match[1]), int(match[2]))


if __name__ == "__main__":
    sys.exit(main())
