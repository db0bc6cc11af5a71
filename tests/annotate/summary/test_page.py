from __future__ import annotations

import html
import logging
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline.annotate.summary import page
from pipeline.annotate.summary.page import Shapes, page_at_end, read_shapes, render_summary
from pipeline.annotate.summary.sample import Sample, SampleCard
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview import FailureKind, look_over
from pipeline.annotations.run_json import AcceleratorUse, RunJson, RunState, Seconds, ThisRun
from pipeline.errors import RunError, UserError
from pipeline.model.categories import Category
from pipeline.page.thumbnails import Thumbnail
from pipeline.storage.lock.lease import LockLost
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from testing.browser import show
from tests.annotations.output_cases import CATEGORY_IDS, IDENTITY, output_table
from tests.drawing.drawn_cases import write_output, write_picture
from tests.page.browser import check_fits, open_browser
from tests.page.parsed import Page, check_self_contained

NASTY = "<script>alert('x')</script>\" onload=\"alert(1)"
SECTIONS = ["books", "failures", "classes", "shapes", "sample", "run"]
RUN = RunJson(
    run_id="20260102T030405-0123abcd",
    state=RunState.FINISHED,
    config={"manifest": {"uri": NASTY}, "images": {}, "output": {"uri": "https://u:hunter2@h/?sig=hunter3"}},
    identity={"model_name": NASTY, "source": "https://h/w.pth?X-Amz-Signature=hunter4", "weights_sha256": "ab" * 32},
    code={"version": "0.1", "packages": {"ray": "2.60"}},
    categories=tuple(Category(i, f"{NASTY} {i}") for i in CATEGORY_IDS),
    this_run=ThisRun(
        *(40, 38, 1, 75.5, 0.503, 0.61, 0.9, {"fetch": 3.0, "segment": 61.0, "write": 0.02}),
        gpu_seconds=Seconds(100.0, 61.0, 39.0, 0.0),
        by_accelerator={"NVIDIA H100": AcceleratorUse(40, 100.0, 100.0, 1440.0)},
        cost=0.05,
    ),
)
PIXEL = Thumbnail("data:image/webp;base64,UklGRh4AAABXRUJQVlA4TBEAAAAvAAAAAAfQ//73v/+BiOh/AAA=", 320, 240)
SAMPLE = Sample((SampleCard(NASTY, 3, 1, PIXEL), SampleCard("lost", 0, 0, None, f"not_found: {NASTY}")))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Uri:
    """An output of 40 images, 4 of them failed, two for a reason that is hostile."""
    uri = Uri(str(tmp_path_factory.mktemp("out")))
    store = OutputStore(uri)
    store.write_rows(output_table([f"{NASTY}{i}" for i in range(20)], failed=[f"{NASTY}3", f"{NASTY}5"]), IDENTITY)
    table = output_table([f"b{i}" for i in range(20)], failed=["b1", "b7"])
    for name, value in (("error_code", NASTY), ("error_message", f"https://h/a.jpg?sig=hunter5 {NASTY * 100}")):
        column = pa.array([None if old is None else value for old in table[name].to_pylist()])
        table = table.set_column(table.column_names.index(name), name, column)
    store.write_rows(table, IDENTITY)
    RUN.write(uri)
    return uri


@pytest.fixture(scope="module")
def full(uri: Uri) -> str:
    return render_summary(look_over(uri), read_shapes(look_over(uri)), SAMPLE)


def words(text: str) -> str:
    text = re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(text))


def test_all_sections_are_there_and_linked(full: str) -> None:
    shown = Page(full)
    assert shown.sections() == SECTIONS
    assert [a["href"] for tag, a in shown.tags if tag == "a"] == [f"#{name}" for name in SECTIONS]


def test_numbers_are_there(full: str, uri: Uri) -> None:
    text = words(full)
    (found,) = duckdb.sql(f"select sum(len(detections)) from '{uri}/data/*.parquet'").fetchall()
    for expected in (
        "annotated 36 (90.0 %)",
        "failed 4 (10.0 %)",
        f"Detections {found[0]} Per image {found[0] / 36:.1f}",
        "Run begun 2026-01-02 03:04 UTC",
        "Data 2 files",
        "Images of this run 40, of which it wrote 38",
        "Time 1 min 15 s",
        "Speed 0.50 images/s",
        "Replicas busy 61%",
        "GPU time 1 min 40 s held: 1 min 01 s busy, 39.0 s idle, 0.0 s lost to deaths",
        "Images a GPU-hour 1,440 on NVIDIA H100",
        "Cost 0.05",
        "segment 1 min 01 s 95.3 %",
        "not_found 2",
        "all 36 annotated images",
        "3 detections, 1 weaker",
    ):
        assert expected in text
    assert "None" not in text


def test_nothing_is_loaded_and_nothing_runs_whatever_is_in_the_names(full: str) -> None:
    check_self_contained(full)
    assert Page(full).text.count(NASTY) > 10


def test_no_secret_is_shown(full: str) -> None:
    assert "hunter" not in full
    assert "https://h/a.jpg" in full


def test_a_long_message_is_cut(full: str) -> None:
    assert len(NASTY * 100) > 4000
    assert NASTY * 20 not in Page(full).text


def test_scores_and_sizes_are_those_of_the_rows(uri: Uri) -> None:
    shapes = read_shapes(look_over(uri))
    of_rows = f"(select unnest(detections) d from '{uri}/data/*.parquet')"
    counts = dict(duckdb.sql(f"select floor(d.score * 20)::int, count(*) from {of_rows} group by 1").fetchall())
    assert shapes.scores == tuple(counts.get(i, 0) for i in range(20))
    sizes = f"select count(*) filter (d.area < 32*32), count(*) filter (d.area between 32*32 and 96*96) from {of_rows}"
    assert shapes.sizes == (*duckdb.sql(sizes).fetchall()[0], 0)
    sides = f"select floor(2 * log2(sqrt(d.area)))::int - 2, count(*) from {of_rows} where d.area >= 4 group by 1"
    counts = dict(duckdb.sql(sides).fetchall())
    assert shapes.sides[1:] == tuple(counts.get(i, 0) for i in range(1, len(shapes.sides)))
    assert sum(shapes.sides) == sum(shapes.scores)  # smaller ones count in the first bin


def test_the_cost_does_not_grow_with_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = Uri(str(tmp_path))
    for i in range(30):
        OutputStore(uri).write_rows(output_table([i, 1000 + i]), IDENTITY)
    monkeypatch.setattr(page, "_FILES_SAMPLED", 10)
    assert read_shapes(look_over(uri)).images == 20
    text = words(render_summary(look_over(uri), read_shapes(look_over(uri)), Sample()))
    assert "a sample of 20 annotated images, drawn evenly over the files" in text
    assert "annotated 60 (100.0 %)" in text


def test_an_output_without_anything(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    RunJson(run_id="x", state=RunState.FAILED, this_run=ThisRun(error="no disk")).write(uri)
    text = render_summary(look_over(uri), read_shapes(look_over(uri)), Sample())
    assert Page(text).sections() == ["books", "sample", "run"]
    for expected in ("The run: failed: no disk", "There is no annotated image"):
        assert expected in words(text)


def test_rows_without_a_report(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    OutputStore(uri).write_rows(output_table([1, 2], failed=[1, 2]), IDENTITY)
    text = words(render_summary(look_over(uri), read_shapes(look_over(uri)), Sample()))
    assert "not known: no run.json says how it was made" in text
    assert "Model swin" in text


def test_many_classes_are_folded(uri: Uri) -> None:
    classes = {f"class {i}": 1000 - i for i in range(400)}
    text = render_summary(replace(look_over(uri), classes=classes), Shapes(), Sample())
    assert "280 classes with fewer" in words(text)
    assert "And 100 classes with fewer detections" in words(text)


def test_texts_without_an_end_are_cut(uri: Uri) -> None:
    endless = "x" * 10**6
    overview = replace(look_over(uri), classes={endless: 1}, failures=(FailureKind(endless, 1, ((endless, endless),)),))
    card = SampleCard(endless, 1, 0, None, endless)
    assert len(render_summary(overview, Shapes(), Sample((card,), ""))) < 100_000


class TestWhenItIsDrawn:
    @pytest.fixture
    def out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An output of a run called "now"; its pictures are not drawn, which takes a process of its own."""
        monkeypatch.setattr(page, "draw_sample", lambda *_: SAMPLE)
        monkeypatch.setattr(page, "_histogram", lambda *_, **__: "")
        write_output(tmp_path / "out", ["a"], [str(tmp_path / "a.png")])
        return self.report(tmp_path / "out", RunState.FINISHED)

    @staticmethod
    def report(out: Path, state: RunState, run_id: str = "now") -> Path:
        run = RunJson.read(Uri(str(out)))
        assert run is not None
        run.run_id, run.state = run_id, state
        run.write(Uri(str(out)))
        return out

    @staticmethod
    def draw(out: Path, fence: Any = lambda: None, error: BaseException | None = None) -> str | None:
        """The page after a run "now" that ended with this error."""
        raised = pytest.raises(type(error)) if error else nullcontext()
        with raised, page_at_end(OutputStore(Uri(str(out))), "now", fence):
            if error is not None:
                raise error
        file = out / "summary.html"
        return file.read_text() if file.exists() else None

    @pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.RUNNING])
    def test_however_the_run_ended(self, out: Path, state: RunState) -> None:
        (out / "summary.html").write_text(render_summary(look_over(Uri(str(out))), Shapes(), Sample()))
        text = self.draw(self.report(out, state))
        assert text is not None
        assert PIXEL.uri in text

    def test_not_while_it_is_at_work(self, out: Path) -> None:
        assert self.draw(self.report(out, RunState.RUNNING)) is None

    def test_an_earlier_runs_page_stays_where_there_was_nothing_to_do(self, out: Path) -> None:
        first = self.draw(out)
        assert self.draw(self.report(out, RunState.FINISHED, "earlier")) == first

    def test_and_is_drawn_where_it_is_missing(self, out: Path) -> None:
        assert self.draw(self.report(out, RunState.FINISHED, "earlier")) is not None

    @pytest.mark.parametrize("content", ["<html>my summer</html>", "<html><title>maskfleet annotate, my notes</title>"])
    def test_a_file_of_the_users_stays(self, out: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
        (out / "summary.html").write_text(content)
        assert self.draw(out) == content
        assert "summary.html is not of an earlier run" in caplog.text

    def test_a_page_that_cannot_be_drawn_is_a_warning(
        self, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> str:
            raise OSError("https://h/?sig=hunter2 is full")

        monkeypatch.setattr(page, "render_summary", broken)
        assert self.draw(out) is None
        assert "no page was drawn: OSError: https://h/ is full" in caplog.text

    def test_a_run_that_lost_its_lock_writes_nothing(self, out: Path) -> None:
        def lost() -> None:
            raise LockLost("taken")

        assert self.draw(out, lost) is None

    @pytest.mark.parametrize("error", [RunError("x"), UserError("damaged"), OSError("x"), None])
    def test_at_the_end_of_a_run(self, out: Path, error: Exception | None) -> None:
        self.draw(out, error=error)
        assert (out / "summary.html").exists()

    def test_a_signal_is_not_kept_waiting(self, out: Path) -> None:
        self.draw(out, error=KeyboardInterrupt())
        assert not (out / "summary.html").exists()

    @pytest.mark.parametrize("error", [UserError("a setting is wrong"), RunError("held"), KeyboardInterrupt()])
    def test_not_of_a_run_that_did_not_begin(self, out: Path, error: BaseException) -> None:
        assert self.draw(self.report(out, RunState.FINISHED, "earlier"), error=error) is None

    def test_in_an_object_store(self, s3: Any, caplog: pytest.LogCaptureFixture) -> None:
        uri = Uri("s3://bucket/summary/out")
        OutputStore(uri).write_rows(output_table([1, 2]), IDENTITY)
        replace(RUN, run_id="now").write(uri)
        with caplog.at_level(logging.INFO), page_at_end(OutputStore(uri), "now", lambda: None):
            pass
        content, _ = open_objects(uri).read("summary.html")
        assert "annotated 2 (100.0 %)" in words(content.decode())
        assert "a page to look at: s3://bucket/summary/out/summary.html" in caplog.text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_fits_its_width_in_silence(self, full: str, browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
        check_fits(browser, full, tmp_path, width, dark)

    def test_long_names_do_not_widen_it(self, full: str, browser: Any, tmp_path: Path) -> None:
        file = tmp_path / "summary.html"
        file.write_text(full.replace("not_found", "x" * 60).replace("alert", "y" * 300), encoding="utf-8")
        show(browser, file, 390, 844)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390

    def test_pictures_can_be_shown(self, uri: Uri, browser: Any, tmp_path: Path) -> None:
        write_picture(tmp_path / "a.png")
        write_output(tmp_path / "out", ["a"], [str(tmp_path / "a.png")])
        with page_at_end(OutputStore(Uri(str(tmp_path / "out"))), "now", lambda: None):
            pass
        show(browser, tmp_path / "out/summary.html", 1280, 844)
        loaded = "return [...document.images].map(i => i.complete && i.naturalWidth > 0)"
        assert browser.execute_script(loaded) == [True]
