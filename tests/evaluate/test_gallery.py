from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.images import ImagesConfig
from pipeline.evaluate.config import GalleryConfig
from pipeline.evaluate.gallery import _source
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.storage.uris import Uri, UriText
from tests.drawing.drawn_cases import write_output


@pytest.mark.parametrize("as_annotated", [True, False])
def test_pictures_are_turned_as_the_annotate_job_turned_them(tmp_path: Path, as_annotated: bool) -> None:
    """Unless there is no report of it; then the gallery's own setting counts."""
    write_output(tmp_path / "run", [1, 2], ["/data/1.png", None], images=ImagesConfig(apply_exif=False))
    if not as_annotated:
        (tmp_path / "run" / "run.json").unlink()
    predictions = open_annotated_output(Uri(str(tmp_path / "run")))
    source, uris = _source(GalleryConfig(image_root="/moved"), predictions, [1, 2])
    assert source.apply_exif is not as_annotated
    assert (source.image_root, uris) == (Uri("/moved"), {1: UriText("/data/1.png")})


def test_pictures_without_a_row_lie_below_the_run_s_root(tmp_path: Path) -> None:
    """What only the ground truth names is looked for where the annotate job read."""
    write_output(tmp_path / "run", [1], ["/photos/1.png"], image_root=Uri("/photos"))
    predictions = open_annotated_output(Uri(str(tmp_path / "run")))
    source, _ = _source(GalleryConfig(), predictions, [1, 2])
    assert source.image_root == Uri("/photos")
