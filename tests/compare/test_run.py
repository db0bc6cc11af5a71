"""Outputs with rows made up: what is said of them, by the command too."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

from jobs.compare import main
from pipeline.annotations.data_file import OutputError
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.reader import open_source
from pipeline.annotations.schema import ANNOTATED, DELETED, FAILED, ImageDetections, detections_array
from pipeline.compare.limits import Limit, LimitError, not_judged
from pipeline.compare.profile import COLUMNS, Profile, poisson_weights
from pipeline.compare.report import write
from pipeline.compare.run import Side, compare, sides_of_run
from pipeline.storage.uris import Uri
from testing.output_rows import as_schema_1, output_rows
from tests.annotations.output_cases import IDENTITY

NAMES = ("cat", "dog", "fox")
SIZE = (100, 200)
NOTHING_CHANGED = {"gained": 0, "lost": 0, "relabelled": 0}
Change = Callable[[int, dict[str, np.ndarray]], None]


def found_on(number: int, change: Change | None) -> ImageDetections:
    """Objects that follow from the image's number; ``change`` may alter them."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(1, 6))
    corners = rng.random((count, 2)) * 50
    made = {
        "boxes": np.concatenate([corners, 10 + rng.random((count, 2)) * 40], axis=1).astype(np.float32),
        "scores": np.sort(rng.beta(5, 2, count))[::-1].astype(np.float32),
        "labels": rng.integers(0, 3, count),
        "areas": rng.integers(100, 1000, count).astype(np.float32),
    }
    if change:
        change(number, made)
    masks = [mask_of(*box) for box in made["boxes"].round().astype(int).tolist()]
    return ImageDetections(**made, image_size=SIZE, counts=masks)


@cache
def mask_of(x: int, y: int, width: int, height: int) -> bytes:
    pixels = np.zeros(SIZE, np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    counts: bytes = coco_mask.encode(pixels)["counts"]
    return counts


def rows(
    ids: Sequence[int | str],
    change: Change | None = None,
    failed: Sequence[int] = (),
    deleted: Sequence[int] = (),
    cameras: Sequence[str | None] | None = None,
) -> pa.Table:
    bad = [n in failed for n in range(len(ids))]
    status = [FAILED if b else DELETED if n in deleted else ANNOTATED for n, b in enumerate(bad)]
    found = [None if b else found_on(n, change) for n, b in enumerate(bad)]
    columns = [
        pa.array(ids),
        pa.array([f"/{i}.png" for i in ids]),
        *(pa.array([None if b else side for b in bad], pa.int32()) for side in SIZE),
        pa.array([None] * len(ids), pa.int8()),
        pa.array(status),
        detections_array(found, (1, 2, 3), NAMES),
        *(pa.array([text if b else None for b in bad], pa.string()) for text in ("fetch", "not_found", "?")),
    ]
    return output_rows(columns, None if cameras is None else pa.table({"camera": cameras}))


def written(folder: Path, *tables: pa.Table, run_ids: Sequence[str] = ()) -> Uri:
    store = OutputStore(Uri(str(folder)))
    for number, table in enumerate(tables):
        store.write_rows(table, replace(IDENTITY, run_id=run_ids[number] if run_ids else "run-1"))
    return store.uri


def sides(before: Uri, after: Uri) -> tuple[Side, Side]:
    return Side(open_source(before)), Side(open_source(after))


def without(label: int, every: int = 1) -> Change:
    """All objects of a class are gone, or those on every n-th image."""

    def change(number: int, made: dict[str, np.ndarray]) -> None:
        if number % every == 0:
            keep = made["labels"] != label
            made.update({name: values[keep] for name, values in made.items()})

    return change


def lower_scores(number: int, made: dict[str, np.ndarray]) -> None:
    made["scores"] = np.where(made["labels"] == 2, made["scores"] * 0.6, made["scores"]).astype(np.float32)


def larger(number: int, made: dict[str, np.ndarray]) -> None:
    made["areas"] = np.where(made["labels"] == 0, made["areas"] * 8, made["areas"]).astype(np.float32)


def test_two_runs_over_the_same_pictures(tmp_path: Path) -> None:
    """Zeros, in the intervals too, however the rows lie in files."""
    table = rows(range(400), failed=[3, 7])
    one = written(tmp_path / "one", table)
    other = written(tmp_path / "other", table[250:], table[:250])
    found = compare(*sides(one, other)).content
    zeros = {"psi": 0, "js": 0, "share_change": 0, "count_change": [0, 0], "failed_change": 0}
    assert found["figures"] == {**zeros, "agreement": 1}
    for each in found["classes"]:
        assert each["before"] == each["after"]
        assert each["share_change"] == each["count_change"] == pytest.approx([0, 0, 0])
        assert each["scores"]["psi"] == each["areas"]["js"] == pytest.approx([0, 0, 0], abs=1e-6)
        assert (each["p_value"], each["q_value"]) == (1, 1)
    assert found["failures"] == {"not_found": {"before": 2, "after": 2}}
    agreement = found["agreement"]
    assert (agreement["images"], agreement["identical"], agreement["mean_iou"]) == (398, 398, 1)
    assert not agreement["relabelled"] + agreement["most_changed"]
    assert agreement["objects"] == {"matched": sum(each["matched"] for each in agreement["classes"]), **NOTHING_CHANGED}
    assert len(agreement["classes"]) == 3
    for each in agreement["classes"]:
        for figures in (each["bbox"], each["segm"]):
            assert [figures[name] for name in ("AP", "AP50", "AP75", "AR")] == pytest.approx([1] * 4, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(without(1), "dog", id="a class is gone"),
        pytest.param(without(1, every=2), "dog", id="half of a class is gone"),
        pytest.param(lower_scores, "fox", id="lower scores"),
        pytest.param(larger, "cat", id="larger objects"),
    ],
)
@pytest.mark.parametrize("same_images", [True, False])
def test_what_changed_comes_first(tmp_path: Path, change: Change, name: str, same_images: bool) -> None:
    before = written(tmp_path / "before", rows(range(300)))
    ids = list(range(300)) if same_images else [f"{i}" for i in range(300)]
    if not same_images:
        before = written(tmp_path / "texts", rows([f"old {i}" for i in range(300)]))
    after = written(tmp_path / "after", rows(ids, change))
    found = compare(*sides(before, after)).content
    assert found["classes"][0]["name"] == name
    assert (found["agreement"] is not None) == same_images
    others = [max(each["scores"]["psi"][1], each["areas"]["psi"][1]) for each in found["classes"][1:]]
    assert max(others) < 0.05


def test_what_came_and_went(tmp_path: Path) -> None:
    def relabel(number: int, made: dict[str, np.ndarray]) -> None:
        if number == 0:
            made["labels"][0] = (made["labels"][0] + 1) % 3
        if number == 1:
            made.update({key: values[1:] for key, values in made.items()})
        if number == 2:
            made["boxes"][0, :2] += 500

    before = written(tmp_path / "before", rows(range(10), failed=[5]))
    after = written(tmp_path / "after", rows(range(1, 12), failed=[5]))
    shifted = written(tmp_path / "shifted", rows(range(10), relabel, failed=[6]))
    found = compare(*sides(before, after)).content["agreement"]
    assert (found["only_before"], found["only_after"]) == (1, 2)
    assert (found["newly_failed"], found["newly_annotated"], found["images"]) == (1, 1, 7)
    found = compare(*sides(before, shifted)).content["agreement"]
    assert (found["images"], found["identical"]) == (8, 5)
    label = int(found_on(0, None).labels[0])
    assert found["relabelled"] == [{"before": NAMES[label], "after": NAMES[(label + 1) % 3], "objects": 1}]
    assert (found["objects"]["lost"], found["objects"]["gained"], found["objects"]["relabelled"]) == (2, 1, 1)
    scores = [found_on(number, None).scores[0].astype(float) ** 2 for number in range(3)]
    weights = {0: scores[0], 1: scores[1], 2: 2 * scores[2]}
    assert {each["image_id"]: each["weight"] for each in found["most_changed"]} == pytest.approx(weights)
    assert [each["weight"] for each in found["most_changed"]] == sorted(weights.values(), reverse=True)


def test_a_run_and_the_rest(tmp_path: Path) -> None:
    nights = [rows(range(200)), rows(range(200, 400), without(0))]
    uri = written(tmp_path, *nights, run_ids=["monday", "tuesday"])
    found = compare(*sides_of_run(uri, "tuesday")).content
    assert (found["before"]["images"], found["after"]["images"]) == (200, 200)
    assert found["classes"][0]["name"] == "cat"
    assert found["agreement"] is None
    with pytest.raises(OutputError, match="no row of run sunday: those that it has rows of are tuesday, monday"):
        sides_of_run(uri, "sunday")


def test_slices(tmp_path: Path) -> None:
    cameras = ["left", "right"] * 150

    def change(number: int, made: dict[str, np.ndarray]) -> None:
        if cameras[number] == "left":
            without(0)(number, made)

    before = written(tmp_path / "before", rows(range(300), cameras=cameras))
    after = written(tmp_path / "after", rows(range(300), change, cameras=cameras))
    slices = compare(*sides(before, after), by="camera").content["slices"]
    found = {each["value"]: each for each in slices}
    assert found["left"]["classes"][0]["name"] == "cat"
    assert found["right"]["figures"]["psi"] == 0
    assert found["left"]["before"]["images"] == 150
    with pytest.raises(OutputError, match="has no column 'lens'"):
        compare(*sides(before, after), by="lens")
    many = written(tmp_path / "many", rows(range(300), cameras=[str(i) for i in range(300)]))
    with pytest.raises(OutputError, match="more than 100 values"):
        compare(*sides(many, many), by="camera")


def test_no_value_and_the_word_null_are_two_slices(tmp_path: Path) -> None:
    cameras = [None, "null", "", "left"] * 100
    before = written(tmp_path / "before", rows(range(400), cameras=cameras))
    after = written(tmp_path / "after", rows(range(400), without(0, every=4), cameras=cameras))
    found = compare(*sides(before, after), by="camera")
    slices = {each["value"]: each for each in json.loads(json.dumps(found.content))["slices"]}
    assert list(slices) == [None, "", "left", "null"]
    assert [each["before"]["images"] for each in slices.values()] == [100] * 4
    assert [each["figures"]["share_change"] > 0 for each in slices.values()] == [True, False, False, False]
    write(found, Uri(str(tmp_path)))
    assert (tmp_path / "comparison.html").read_text().count("no value") == 1


def test_a_column_that_sorts_nothing(tmp_path: Path) -> None:
    table = rows(range(4), cameras=["a", "b", "c", "d"])
    boxes = pa.array([[1, 2]] * 4)
    uri = written(tmp_path, table.drop_columns("camera").append_column("camera", boxes))
    with pytest.raises(OutputError, match=r"column 'camera' of .* is list"):
        compare(*sides(uri, uri), by="camera")


def test_rows_that_do_not_count_and_older_files(tmp_path: Path) -> None:
    table = rows(range(100))
    one = written(tmp_path / "one", table)
    other = written(tmp_path / "other", rows(range(100), deleted=[1, 2]))
    found = compare(*sides(one, other)).content
    assert (found["after"]["images"], found["agreement"]["only_before"]) == (98, 2)
    for path in (tmp_path / "one" / "data").iterdir():
        as_schema_1(path)
    assert compare(*sides(one, written(tmp_path / "same", table))).figures["psi"] == 0


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    numbers, texts = written(tmp_path / "a", rows([1, 2])), written(tmp_path / "b", rows(["1", "2"]))
    with pytest.raises(OutputError, match="two types"):
        compare(*sides(numbers, texts))
    all_failed = written(tmp_path / "c", rows([1, 2], failed=[0, 1]))
    found = compare(*sides(numbers, all_failed))
    assert found.figures == {
        **dict.fromkeys(("psi", "js", "share_change", "count_change", "agreement")),
        "failed_change": 1,
    }


def test_intervals_hold_what_they_say() -> None:
    """Of samples of one distribution the interval of a mean holds the true one as often as 95 % of the time, about."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        values = rng.exponential(size=80)
        weights = poisson_weights(pa.array(np.arange(80) + 1000 * trial), 200).astype(float)
        means = weights @ values / weights.sum(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.99
    weights = poisson_weights(pa.array(np.arange(5000)), 50)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    assert (poisson_weights(pa.array(["a", "b"]), 9) == poisson_weights(pa.array(["b", "a"]), 9)[:, ::-1]).all()


def test_counts_are_exact_however_large(tmp_path: Path) -> None:
    profile = Profile((1, 2, 3), 2)
    profile.scores[:], profile.areas[:] = 1 << 25, 1 << 25  # beyond which float32 has no odd numbers
    before = profile.scores[0].sum()
    profile.add(next(Side(open_source(written(tmp_path, rows(range(3))))).tables(COLUMNS)))
    assert profile.scores[0].sum() - before == sum(len(found_on(n, None).scores) for n in range(3))


@pytest.mark.parametrize(
    ("text", "value", "broken"),
    [("psi>0.2", 0.3, True), ("psi > 0.2", 0.2, False), ("js>=0.2", 0.2, True), ("agreement<.9", None, False),
     ("failed_change<=-1e-3", -0.5, True)],
)  # fmt: skip
def test_limits(text: str, value: float | None, broken: bool) -> None:
    limit = Limit.parse(text)
    assert limit.is_broken({limit.figure: value}) == broken


@pytest.mark.parametrize("text", ["psi", "psy>1", "psi=1", "psi>x", "psi>1.2.3", "psi>0.2; rm"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(LimitError):
        Limit.parse(text)


def test_a_class_that_is_gone_or_came_breaks_a_limit(tmp_path: Path) -> None:
    whole, without_dog = rows(range(150)), rows(range(150), without(1))
    both = [written(tmp_path / "whole", whole), written(tmp_path / "without", without_dog)]
    gone, came = compare(*sides(*both)), compare(*sides(*both[::-1]))
    dogs = sum(int((found_on(n, None).labels == 1).sum()) for n in range(150))
    assert gone.figures["count_change"] == [-1, 0]
    assert came.figures["count_change"] == pytest.approx([0, dogs - 1])  # as if there had been one
    (low, value, high) = gone.content["classes"][0]["count_change"]
    assert (low, value, high) == (-1, -1, -1)
    for text, of_gone, of_came in [
        ("count_change<-0.5", True, False),
        ("count_change<=-1", True, False),
        ("count_change>1", False, True),
        ("count_change>-2", True, True),
    ]:
        assert Limit.parse(text).is_broken(gone.figures) == of_gone
        assert Limit.parse(text).is_broken(came.figures) == of_came
    assert gone.not_judged == {"psi": ["dog"], "js": ["dog"], "count_change": []}


def test_what_is_too_little_to_be_judged_is_named(tmp_path: Path) -> None:
    """By the command, where there is a limit on it; and it breaks none."""
    before = written(tmp_path / "before", rows(range(20)))
    after = written(tmp_path / "after", rows(range(20, 40), without(1)))
    found = compare(*sides(before, after))
    assert found.figures["count_change"] is None
    assert sorted(found.not_judged["psi"]) == sorted(found.not_judged["count_change"]) == sorted(NAMES)
    limits = [
        Limit.parse(text) for text in ("count_change<-0.5", "psi>99", "psi>999", "agreement<1", "failed_change>0")
    ]
    assert not any(limit.is_broken(found.figures) for limit in limits)
    assert not_judged(limits, found.figures, found.not_judged, found.few_images) == (
        "not judged: count_change of 3 classes with fewer than 30 objects on as many images as the smaller side has "
        "(dog, fox, cat); "
        "psi of 3 classes with fewer than 100 objects (dog, fox, cat); "
        "agreement: there is no object on images of both sides; "
        "psi of objects an image and of picture sizes: a side has fewer than 100 annotated images"
    )
    assert not_judged(limits[-1:], found.figures, found.not_judged, found.few_images) == ""


def test_images_without_objects(tmp_path: Path) -> None:
    """There are enough of them, and what there is none of is said."""

    def nothing(number: int, made: dict[str, np.ndarray]) -> None:
        made.update({name: values[:0] for name, values in made.items()})

    both = [written(tmp_path / name, rows(ids, nothing)) for name, ids in [("a", range(100)), ("b", range(100, 200))]]
    found = compare(*sides(*both))
    assert (found.figures["psi"], found.figures["share_change"]) == (0, None)
    said = not_judged([Limit.parse("psi>1"), Limit.parse("share_change>0.1")], found.figures, {}, found.few_images)
    assert said == "not judged: share_change: there is no object on either side"


def test_few_objects_on_many_more_images(tmp_path: Path) -> None:
    """A night of ten images lacks most classes by chance."""
    before, after = written(tmp_path / "before", rows(range(400))), written(tmp_path / "after", rows(range(400, 410)))
    found = compare(*sides(before, after))
    assert min(each["before"]["detections"] for each in found.content["classes"]) > 100
    assert set(found.not_judged["count_change"]) == set(NAMES)


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("cut", [0.5, 0.0])
def test_a_damaged_file_is_named_and_nothing_is_written(
    tmp_path: Path, side: str, cut: float, capsys: Any, caplog: Any
) -> None:
    both = [written(tmp_path / name, rows(range(300))) for name in ("before", "after")]
    (file,) = (tmp_path / side / "data").iterdir()
    content = file.read_bytes()
    # Cut off, or whole in length with a page that is not what was written.
    middle = len(content) // 4
    torn = content[:middle] + bytes(64) + content[middle + 64 :]
    file.write_bytes(content[: int(cut * len(content))] if cut else torn)
    out = tmp_path / "out"
    out.mkdir()
    of_yesterday = json.dumps({"version": 1, "after": {}})
    (out / "comparison.json").write_text(of_yesterday)
    assert main([*map(str, both), "--out", str(out)]) == 2
    said = caplog.text + capsys.readouterr().err
    assert file.name in said
    assert ("is cut off" if cut else "is damaged") in said
    assert [path.name for path in out.iterdir()] == ["comparison.json"]
    assert (out / "comparison.json").read_text() == of_yesterday


@pytest.mark.parametrize("name", ["comparison.json", "comparison.html"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str, caplog: Any, monkeypatch: Any) -> None:
    """And that is said before anything is read."""
    before, after = (written(tmp_path / side, rows(range(20))) for side in ("before", "after"))
    out = tmp_path / "out"
    command = [str(before), str(after), "--out", str(out)]
    assert main(command) == main(command) == 0  # an earlier comparison makes way
    (out / name).write_text('{"version": 1}' if name.endswith("json") else "<title>Mine</title>")
    others = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(Side, "tables", None)
    assert main(command) == 2
    assert f"{name} is in the way, and not of an earlier comparison" in caplog.text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == others


def test_a_column_that_one_side_lacks_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    before = written(tmp_path / "before", rows(range(4), cameras=["a", "b", "c", "d"]))
    after = written(tmp_path / "after", rows(range(4)))
    monkeypatch.setattr(Side, "tables", None)
    with pytest.raises(OutputError, match="after has no column 'camera'"):
        compare(*sides(before, after), by="camera")


def test_the_command(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    before = written(tmp_path / "before", rows(range(100)))
    after = written(tmp_path / "after", rows(range(100), without(2)))
    out = tmp_path / "out"
    arguments = [str(before), str(after), "--out", str(out)]
    assert main([*arguments, "--fail-if", "agreement<0.1"]) == 0
    said = capsys.readouterr().out
    assert "fox: " in said
    assert "AP 0." in said
    assert "not judged" not in said
    assert main([*arguments, "--fail-if", "psi>5", "--fail-if", "share_change>0.2"]) == 3
    assert "not judged: psi of " in capsys.readouterr().out
    assert "beyond the limits of --fail-if: share_change>0.2" in caplog.text
    assert json.loads((out / "comparison.json").read_text())["version"] == 1
    page = (out / "comparison.html").read_text()
    assert "fox" in page
    assert "<script" not in page
