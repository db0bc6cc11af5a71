from __future__ import annotations

import base64
import io
import re
import time
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.annotate.summary import sample
from pipeline.annotate.summary.sample import SampleCard, draw_sample, sample_cards
from pipeline.annotations.ledger import OutputStore
from pipeline.drawing.colours import category_colour
from pipeline.storage.objects.base import Entry
from pipeline.storage.uris import Uri
from tests.drawing.drawn_cases import GREY, SIZE, write_output, write_picture

CARD = '{"image_id": "a", "shown": 0, "weaker": 0, "picture": null, "reason": "?"}'


def of(folder: Path) -> tuple[Uri, list[Entry]]:
    """An output and its files."""
    store = OutputStore(Uri(str(folder / "out")))
    return store.uri, list(store.files().settled)


def drawn_here(folder: Path, num_images: int = 12) -> list[SampleCard]:
    """Without the process of their own."""
    return [card for _, card in sorted(sample_cards(*of(folder), num_images), key=itemgetter(0))]


def test_every_picture_is_drawn_or_has_its_reason(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    Image.new("RGB", SIZE).save(tmp_path / "turned.png")  # Pillow has the width first
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    ids = ["a", "gone", "failed", "turned", "broken", "bytes"]
    uris = [str(tmp_path / f"{name}.png") for name in ids[:-1]]
    write_output(tmp_path / "out", ids, [*uris, None], failed=["failed"])
    found = draw_sample(*of(tmp_path), 12, 60.0)
    assert found.missing == ""
    assert [card.image_id for card in found.cards] == ["a", "gone", "turned", "broken", "bytes"]
    reasons = [card.reason.partition(":")[0] for card in found.cards]
    assert reasons == ["", "not_found", "another_size", "corrupt_image", "no_uri"]
    assert [(card.shown, card.weaker) for card in found.cards] == [(2, 0)] * 5


def test_packages_of_the_users_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipeline", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('of the user')")
    monkeypatch.chdir(tmp_path)
    write_output(tmp_path / "out", [1], [None])
    found = draw_sample(*of(tmp_path), 12, 60.0)
    assert (found.missing, len(found.cards)) == ("", 1)


def test_masks_are_where_they_are_in_the_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_output(tmp_path / "out", [1], [str(tmp_path / "a.png")])
    (card,) = drawn_here(tmp_path)
    assert card.picture is not None
    data = base64.b64decode(card.picture.uri.partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert pixels.shape == (2 * SIZE[0], 2 * SIZE[1], 3)  # small pictures are doubled
    np.testing.assert_allclose(pixels[50, 40], GREY * 0.55 + 0.45 * np.array(category_colour(3)), atol=12)
    np.testing.assert_allclose(pixels[110, 150], [GREY] * 3, atol=6)


def test_evenly_over_the_files_and_always_the_same(tmp_path: Path) -> None:
    for start in range(0, 60, 20):
        write_output(tmp_path / "out", list(range(start, start + 20)), [None] * 20)
    first = [int(card.image_id) for card in drawn_here(tmp_path, 7)]
    assert sorted(np.bincount([number // 20 for number in first])) == [2, 2, 3]
    assert [int(card.image_id) for card in drawn_here(tmp_path, 7)] == first


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("import time; time.sleep(60)", "longer than 2 s"),
        ("import os; os.kill(os.getpid(), 9)", r"ended early \(-9\)"),
        ("raise MemoryError('no room')", r"ended early \(MemoryError: no room\)"),
    ],
)
def test_what_hangs_or_dies_costs_its_time_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, missing: str
) -> None:
    lines = f"print('[0, {CARD}]', flush=True); print('[1, {{', end='', flush=True); "
    monkeypatch.setattr(sample, "_COMMAND", lines + command)
    before = time.monotonic()
    found = draw_sample(Uri(str(tmp_path)), [], 12, 2.0)
    assert time.monotonic() - before < 20
    assert [card.image_id for card in found.cards] == ["a"]
    assert re.search(missing, found.missing)
