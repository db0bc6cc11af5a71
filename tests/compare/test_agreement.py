"""Images of both sides: AP against pycocotools, pairs against loops, and the gallery of what differs most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jobs.compare import main
from pipeline.coco.errors import InputError
from pipeline.compare import agreement
from pipeline.compare.agreement import Agreement, Tables, agree
from pipeline.compare.report import cards
from pipeline.compare.run import compare
from pipeline.config.images import ImagesConfig
from pipeline.metrics.ap.figures import Arrays, coco_stats, per_class, stat_names
from pipeline.metrics.blocks import Categories
from pipeline.metrics.protocol import IOU_TYPES, IouType
from pipeline.storage.uris import Uri
from tests.compare.test_run import NAMES, rows, sides, written
from tests.drawing.drawn_cases import write_output, write_picture
from tests.evaluate.coco_cases import pycocotools_result

CATEGORIES = Categories((1, 2, 3), NAMES)
LIMITS = (1, 10, 65535)
Objects = list[dict[str, Any]]


def other_model(number: int, made: dict[str, np.ndarray]) -> None:
    """Boxes a little off, some objects gone, called otherwise, sure of other things; ties and objects without area."""
    rng = np.random.default_rng(1000 + number)
    if number == 7:  # more of one class than COCO looks at
        corners = np.stack([np.arange(150) % 15 * 10, np.arange(150) // 15 * 10], axis=1)
        made["boxes"] = np.concatenate([corners, np.full((150, 2), 9)], axis=1).astype(np.float32)
        made["labels"], made["areas"] = np.zeros(150, np.int64), np.full(150, 81, np.float32)
        made["scores"] = np.linspace(0.99, 0.2, 150).astype(np.float32)
    made["boxes"][:, :2] += rng.choice([0, 0, 3, -2], made["boxes"][:, :2].shape).clip(-made["boxes"][:, :2])
    made["scores"] = np.round(made["scores"] + rng.normal(0, 0.1, len(made["scores"])), 1).clip(0, 1).astype(np.float32)
    made["labels"] = np.where(rng.random(len(made["labels"])) < 0.15, 2, made["labels"])
    if number % 9 == 0:
        made["boxes"][0, 2:] = 0
    keep = rng.random(len(made["labels"])) < 0.85
    made.update({name: values[keep] for name, values in made.items()})


def many(number: int, made: dict[str, np.ndarray]) -> None:
    if number == 7:
        other_model(7, made)


def agreed(before: pa.Table, after: pa.Table) -> Agreement:
    return agree(Tables("a", [before]), Tables("b", [after]), CATEGORIES, len(before))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_ROWS_OF_PART", 10)
    monkeypatch.setattr(agreement, "_BLOCK_IMAGES", 3)


def by_pycocotools(before: pa.Table, after: pa.Table, iou_type: IouType) -> Arrays:
    def objects(table: pa.Table) -> Objects:
        found = [
            {**each, "image_id": row["image_id"], "id": 0, "iscrowd": 0, "area": coco_mask.area(each["segmentation"])}
            for row in table.to_pylist()
            for each in row["detections"]
        ]
        kept = [each for each in found if (each["area"] if iou_type == "segm" else min(each["bbox"][2:])) > 0]
        return [{**each, "id": n} for n, each in enumerate(kept, 1)]

    images = [{"id": row["image_id"], "height": row["height"], "width": row["width"]} for row in before.to_pylist()]
    categories = [{"id": k, "name": name} for k, name in zip(CATEGORIES.ids, NAMES, strict=True)]
    dataset = {"images": images, "annotations": objects(before), "categories": categories}
    found = pycocotools_result(dataset, objects(after), iou_type, LIMITS)
    return Arrays(found.precision, found.recall, found.scores)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_precision_is_pycocotools(iou_type: IouType) -> None:
    before, after = rows(range(40), many), rows(range(40), other_model)
    arrays = by_pycocotools(before, after, iou_type)
    assert agreed(before, after[20:]).images == 20
    found = agreed(before, pa.concat_tables([after[25:], after[:25]]))
    assert found.precision[iou_type] == [pytest.approx(row, abs=1e-12) for row in per_class(arrays, LIMITS)]
    means = dict(zip(stat_names(LIMITS), coco_stats(arrays, LIMITS), strict=True))
    mean = found.mean_precision(iou_type)
    assert 0.3 < means["AP50"] < 0.95
    # COCOeval's own AP is at 100 detections, which are none of these limits; that of the package is at the last one.
    names = ("AP", "AP50", "AP75", "APs", "APm")
    assert [mean[name] for name in names] == pytest.approx([means[name] for name in names], abs=1e-12)


@pytest.mark.usefixtures("small_parts")
def test_every_class_agrees_with_itself() -> None:
    """Also where an image has more than COCO's 100 of it, or objects that are on no pixel."""
    table = rows(range(40), other_model)
    found = agreed(table, pa.concat_tables([table[13:], table[:13]]))
    for each in [row for by_type in found.precision.values() for row in by_type]:
        assert each["AP"] == each["AR"] == pytest.approx(1, abs=1e-12)
    assert (found.identical, found.share, found.most_changed) == (40, 1, [])


def by_loops(before: Objects, after: Objects) -> tuple[int, int, int, int, float]:
    """Matched, relabelled, gained, lost, and the weight, of one image."""
    old = [each for each in before if min(each["bbox"][2:]) > 0]
    new = [each for each in after if min(each["bbox"][2:]) > 0]
    counts, weight = [], 0.0
    for of_one_class in (True, False):
        counts.append(0)
        for each in list(new):
            ious = [float(coco_mask.iou([each["bbox"]], [known["bbox"]], [0])[0, 0]) for known in old]
            fits = [
                iou if (known["category_id"] == each["category_id"]) == of_one_class else 0
                for iou, known in zip(ious, old, strict=True)
            ]
            if fits and max(fits) >= 0.5:
                known = old.pop(int(np.argmax(fits)))
                new = [other for other in new if other is not each]
                counts[-1] += 1
                weight += 0 if of_one_class else max(known["score"], each["score"]) ** 2
    weight += sum(each["score"] ** 2 for each in old + new)
    return counts[0], counts[1], len(new), len(old), weight


@pytest.mark.usefixtures("small_parts")
def test_pairs_are_those_of_loops() -> None:
    before, after = rows(range(60)), rows(range(60), other_model)
    found = agreed(before, after)
    pairs = zip(before["detections"].to_pylist(), after["detections"].to_pylist(), strict=True)
    images = [by_loops(old, sorted(new, key=lambda each: -each["score"])) for old, new in pairs]
    totals = [int(found.matched.sum()), sum(found.relabelled.values()), int(found.gained.sum()), int(found.lost.sum())]
    assert totals == [sum(each[n] for each in images) for n in range(4)]
    assert found.relabelled  # or nothing was tried
    ordered = sorted(range(60), key=lambda n: (-images[n][4], n))
    assert [each.image_id for each in found.most_changed] == ordered[: len(found.most_changed)]
    first = found.most_changed[0]
    assert (first.matched, first.relabelled, first.gained, first.lost) == images[first.image_id][:4]
    assert [each["image_id"] for each in (first.before, first.after)] == [first.image_id] * 2


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = rows(range(60)), rows(range(60), other_model)
    everything = agreed(before, after).most_changed
    monkeypatch.setattr(agreement, "MOST_SHOWN", 4)
    monkeypatch.setattr(agreement, "_BLOCK_IMAGES", 7)
    assert agreed(before, after).most_changed == everything[:4]


def test_pictures_of_another_size_are_others() -> None:
    before, after = rows(range(5)), rows(range(5))
    sizes = after["height"].to_pylist()
    after = after.set_column(2, "height", pa.array([sizes[0] + 1, *sizes[1:]], pa.int32()))
    found = agreed(before, after)
    assert (found.images, found.replaced, found.identical) == (4, 1, 4)


@pytest.mark.parametrize("column", ["object_etag", "object_size"])
def test_pictures_that_were_replaced_at_their_place_are_others(column: str) -> None:
    """Not where one side cannot tell, nor where a copy lies elsewhere."""
    at, kind = rows([0]).schema.get_field_index(column), pa.string() if column == "object_etag" else pa.int64()

    def side(values: list[int | None]) -> pa.Table:
        texts = pa.array(values, pa.int64()).cast(kind)
        return rows(range(5)).set_column(at, column, texts)

    before, after = side([1, 1, None, 1, 1]), side([1, 2, 2, None, 2])
    uris = after["image_uri"].to_pylist()
    after = after.set_column(1, "image_uri", pa.array([*uris[:4], "s3://copy/4.png"]))
    found = agreed(before, after)
    assert (found.images, found.replaced, found.identical) == (4, 1, 4)


def test_a_damaged_mask_is_named() -> None:
    table = rows(["x", "y"])
    lists = table["detections"].to_pylist()
    lists[1][0]["segmentation"]["counts"] = "0"
    damaged = table.set_column(6, table.schema.field(6), pa.array(lists, table.schema.field(6).type))
    with pytest.raises(InputError, match=r"^b: the mask of a detection on image 'y' is damaged"):
        agreed(table, damaged)


def pair_of_outputs(tmp_path: Path, pictures: list[str | None], **settings: Any) -> tuple[Uri, Uri]:
    """Three images, on the last two of which the later side misses the cat."""
    ids = list(range(len(pictures)))
    before = write_output(tmp_path / "before", ids, pictures, **settings)
    after = write_output(tmp_path / "after", ids, pictures, without_cat=ids[1:], **settings)
    return before.uri, after.uri


def test_the_gallery(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "3.png")
    pictures = ["0.png", "1.png", "gone.png", "3.png", None]
    uris = pair_of_outputs(tmp_path, [name and str(tmp_path / name) for name in pictures])
    shown = {card.image_id: card for card in cards(compare(*sides(*uris)), 50)}
    assert list(shown) == ["1", "2", "3", "4"]  # not 0, on which nothing differs
    assert [card.notes[0].split(":")[1].strip() for card in shown.values() if card.notes] == [
        "not_found",
        "another_size",
        "no_uri",
    ]
    assert shown["1"].before != shown["1"].after
    assert shown["1"].after != shown["2"].after  # grey, but not the same grey
    page = tmp_path / "out" / "comparison.html"
    arguments = [*map(str, uris), "--out", str(page.parent)]
    assert main(arguments) == 0
    assert page.read_text().count("<img") == 8
    assert "0 gained, 1 lost, 0 relabelled, 1 the same" in page.read_text()
    assert main([*arguments, "--gallery", "1"]) == 0
    assert page.read_text().count("<img") == 2
    assert main([*arguments, "--gallery", "0"]) == 0
    assert page.read_text().count("<img") == 0
    with pytest.raises(SystemExit):
        main([*arguments, "--gallery", "-1"])


def test_the_gallery_reads_what_the_run_might_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png")
    (tmp_path / "allowed").mkdir()
    images = ImagesConfig(allowed_roots=[str(tmp_path / "allowed")])
    uris = pair_of_outputs(tmp_path, [None, str(tmp_path / "1.png")], images=images)
    (card,) = cards(compare(*sides(*uris)), 5)
    assert "not_allowed" in card.notes[0]
    for uri in uris:
        (Path(str(uri)) / "run.json").unlink()
    (card,) = cards(compare(*sides(*uris)), 5)
    assert "no run.json says" in card.notes[0]


def test_what_stands_in_ids_and_names_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    before, after = (written(tmp_path / name, rows([evil], change)) for name, change in (("a", None), ("b", lost)))
    assert main([str(before), str(after), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert evil not in page
    assert page.count("&lt;script&gt;alert(1)") >= 3


def lost(number: int, made: dict[str, np.ndarray]) -> None:
    made.update({name: values[1:] for name, values in made.items()})
