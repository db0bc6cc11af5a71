"""A comparison for people: some lines of text, and a page on which the images that differ most are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.ledger import COMPARISON_NAME, COMPARISON_PAGE_NAME
from pipeline.annotations.pictures import FETCH, PictureSource
from pipeline.annotations.run_json import RunJson
from pipeline.compare.agreement import Disagreement
from pipeline.compare.earlier import read_earlier
from pipeline.compare.limits import Figure, Limit
from pipeline.compare.run import Comparison
from pipeline.drawing.draw import DrawOptions, Picture
from pipeline.drawing.rows import row_objects, row_uri
from pipeline.page.shell import environment, rendered
from pipeline.page.thumbnails import Overlay, Thumbnail, blank, thumbnail
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, hide_secrets

_TITLE = "Two outputs compared"
_MARK = f"<title>{_TITLE}</title>".encode()  # by which a page of ours is known
_HEAD_BYTES = 1024
_MOST_CLASSES = 200
_PICTURES_AT_ONCE = 8  # fetched concurrently, and in memory together
_SHOWN = DrawOptions(min_score=0.3)


class Card(NamedTuple):
    """An image as the page shows it.

    Attributes:
        image_id: as text, without secrets.
        image: what differs on it.
        before, after: what each side has found on it.
        notes: why there is no picture behind the objects, if there is none.
    """

    image_id: str
    image: Disagreement
    before: Thumbnail
    after: Thumbnail
    notes: tuple[str, ...]


def check_free(folder: Uri) -> None:
    """Raise if a report would take the place of a file that is none of an earlier one.

    Raises:
        OutputError: it would; nothing was written.
        OSError: it cannot be told.
    """
    objects = open_objects(folder)
    there = {entry.name: entry for entry in objects.list("").files}
    page = there.get(COMPARISON_PAGE_NAME)
    of_others = []
    if COMPARISON_NAME in there and read_earlier(folder) is None:
        of_others.append(COMPARISON_NAME)
    if page and _MARK not in objects.read_range(page.name, 0, min(_HEAD_BYTES, page.size_bytes)):
        of_others.append(page.name)
    if of_others:
        raise OutputError(
            f"{folder / of_others[0]} is in the way, and not of an earlier comparison: move it, or give another folder"
        )


def write(found: Comparison, folder: Uri, limits: Sequence[Limit] = (), most_drawn: int = 0) -> None:
    """``comparison.json`` and the page beside it; earlier ones are replaced.

    Args:
        found: the comparison.
        folder: where they go.
        limits: that were asked for; both say which are broken.
        most_drawn: images on the page, those that differ most.
    """
    judged = [{"limit": limit.text, "is_broken": limit.is_broken(found.figures)} for limit in limits]
    page = _page(found, judged, list(cards(found, most_drawn)))
    objects = open_objects(folder)
    objects.put(COMPARISON_NAME, json.dumps({**found.content, "limits": judged}, indent=2).encode())
    objects.put(COMPARISON_PAGE_NAME, page.encode())


def text(found: Comparison) -> str:
    """Some lines: the figures, how far both agree, and the classes that changed most."""
    figures = [f"{name} {_number(value)}" for name, value in found.figures.items() if value is not None]
    lines = [", ".join(figures) or "no figure can be told of so few images"]
    if shared := found.content["agreement"]:
        kinds = (("boxes", "bbox"), ("masks", "segm"))
        means = [(name, shared["precision"][kind].get("AP")) for name, kind in kinds]
        told = [f"{value:.3f} by {name}" for name, value in means if value is not None]
        lines.append(f"  on {shared['images']:,} images of both sides: AP {', '.join(told) or 'of no object'}")
    for each in found.content["classes"][:5]:
        if each["scores"]["psi"] is not None or each["before"] != each["after"]:
            before, after = each["before"], each["after"]
            lines.append(
                f"  {each['name']}: {before['detections']:,} -> {after['detections']:,} detections, on "
                f"{before['share']:.2%} -> {after['share']:.2%} of the images (q {each['q_value']:.2g})"
            )
    return "\n".join(lines)


def _number(value: Figure) -> str:
    if isinstance(value, list):
        return " to ".join(f"{each:+.4g}" for each in value)
    return f"{value:.4g}"


def _page(found: Comparison, judged: Sequence[Mapping[str, Any]], gallery: Sequence[Card]) -> str:
    shared = found.content["agreement"]
    context = {
        "title": _TITLE,
        "found": found.content,
        "classes": found.content["classes"][:_MOST_CLASSES],
        "agreeing": shared["classes"][:_MOST_CLASSES] if shared else [],
        "limits": judged,
        "gallery": gallery,
        "shown_score": _SHOWN.min_score,
    }
    return rendered(environment("pipeline.compare"), "comparison.html.jinja", context)


def cards(found: Comparison, most: int) -> Iterator[Card]:
    """The images that differ most, a few pictures in memory at a time; one that cannot be read is grey.

    They are read as the run of the later side read them.
    """
    waiting = iter(found.most_changed[:most])
    source = _source(found)
    while some := list(islice(waiting, _PICTURES_AT_ONCE)):
        uris = [row_uri(each.after) or row_uri(each.before) for each in some]
        pictures = [source] * len(some) if isinstance(source, ImageFailure) else source.read_many(uris)
        for each, picture in zip(some, pictures, strict=True):
            yield _card(each, picture)


def _source(found: Comparison) -> PictureSource | ImageFailure:
    for side in (found.after, found.before):
        try:
            if run := RunJson.read(side.source.uri):
                return PictureSource.of_run(run, run.image_root)
        except OutputError as error:
            return ImageFailure(FETCH, "no_run", str(error))
    return ImageFailure(FETCH, "no_run", "no run.json says how pictures are read")


def _card(image: Disagreement, picture: Picture | ImageFailure) -> Card:
    drawn = picture if isinstance(picture, ImageFailure) else _drawn(image, picture)
    notes = []
    if isinstance(drawn, ImageFailure):
        notes.append(hide_secrets(f"The picture could not be read: {drawn.code}: {drawn.message}."))
        drawn = _drawn(image, blank(image.after["height"], image.after["width"]))
        assert not isinstance(drawn, ImageFailure)  # of this size, and with masks that were compared
    return Card(hide_secrets(str(image.image_id)), image, *drawn, tuple(notes))


def _drawn(image: Disagreement, picture: Picture) -> tuple[Thumbnail, Thumbnail] | ImageFailure:
    """The objects of both sides on the picture, or why they cannot be drawn on it."""
    sides = []
    for row in (image.before, image.after):
        found = row_objects(row, picture, _SHOWN)
        if isinstance(found, ImageFailure):
            return found
        overlay = Overlay(found.boxes, found.labels, found.scores, found.rles)
        sides.append(thumbnail(picture, overlay, found.categories))
    return sides[0], sides[1]
