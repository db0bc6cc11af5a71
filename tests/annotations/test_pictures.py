from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.config.images import ImagesConfig
from pipeline.images.decode import DecodedImage
from pipeline.storage.uris import Uri, UriText


def code(result: object) -> str | None:
    return result.code if isinstance(result, ImageFailure) else None


def source_of(images: ImagesConfig, image_root: str = "") -> PictureSource:
    config = {"images": images.model_dump(mode="json")}
    root = Uri(image_root) if image_root else None
    return PictureSource.of_run(RunJson(state=RunState.FINISHED, config=config), root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "plain.png")
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:200])
    return tmp_path


def test_results_stay_in_order_whatever_fails(folder: Path) -> None:
    names = map(UriText, ["damaged.jpg", "absent.jpg", "../out.jpg", "turned.jpg"])
    results = PictureSource(image_root=Uri(str(folder))).read_many([UriText("plain.png"), None, *names])
    expected = [None, "no_uri", "corrupt_image", "not_found", "uri_not_allowed", None]
    assert [code(result) for result in results] == expected
    np.testing.assert_array_equal(results[0], np.broadcast_to(np.array([200, 10, 10], np.uint8), (20, 30, 3)))


@pytest.mark.parametrize(("apply_exif", "shape"), [(True, (30, 20, 3)), (False, (20, 30, 3))])
def test_turned_as_the_run_turned(folder: Path, apply_exif: bool, shape: tuple[int, ...]) -> None:
    (picture,) = source_of(ImagesConfig(apply_exif=apply_exif)).read_many([UriText(str(folder / "turned.jpg"))])
    assert isinstance(picture, np.ndarray)
    assert picture.shape == shape


def test_limits_of_the_run(folder: Path) -> None:
    uri = str(folder / "plain.png")
    assert code(source_of(ImagesConfig(max_pixels=599)).read_many([UriText(uri)])[0]) == "too_many_pixels"
    assert code(source_of(ImagesConfig(max_object_bytes=10)).read_many([UriText(uri)])[0]) == "too_large"


@pytest.mark.parametrize(
    ("roots", "image_root", "refused"), [((), False, True), ((), True, False), (None, True, False)]
)
def test_access_policy_of_the_run_and_the_root_given_by_hand(
    folder: Path, roots: tuple[str, ...] | None, image_root: bool, refused: bool
) -> None:
    source = source_of(ImagesConfig(allowed_roots=roots), str(folder) if image_root else "")
    (result,) = source.read_many([UriText("plain.png" if image_root else str(folder / "plain.png"))])
    assert (code(result) == "uri_not_allowed") is refused


def test_relative_without_a_root_is_relative_to_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert code(PictureSource().read_many([UriText("plain.png")])[0]) is None


@pytest.mark.parametrize("config", [{}, {"images": None}, {"images": {"max_pixels": "x"}}])
def test_report_of_another_kind(config: dict[str, object]) -> None:
    with pytest.raises(OutputError, match="does not say how images were read"):
        PictureSource.of_run(RunJson(state=RunState.FINISHED, config=config))


def test_secrets_of_a_uri_are_not_repeated() -> None:
    (error,) = PictureSource().read_many([UriText("http://127.0.0.1:9/a.jpg?X-Amz-Signature=secret")])
    assert isinstance(error, ImageFailure)
    assert "secret" not in error.message


def test_bytes_are_an_image_whatever_the_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (5, 4), 7).save(buffer, "PNG")
    (tmp_path / "x.txt").write_bytes(buffer.getvalue())
    (picture,) = PictureSource().read_many([UriText(str(tmp_path / "x.txt"))])
    np.testing.assert_array_equal(picture, np.full((4, 5, 3), 7, np.uint8))


def test_the_message_of_a_failure_leaves_the_code_to_its_field(folder: Path) -> None:
    (error,) = PictureSource().read_many([UriText(str(folder / "absent.jpg"))])
    assert error == ImageFailure("fetch", "not_found", f"{folder}/absent.jpg: No such file or directory")


def test_fetched_and_decoded_apart(folder: Path) -> None:
    """With the failure of a picture that could not be fetched passing by the decoder."""
    source = PictureSource()
    uris = [str(folder / "turned.jpg"), str(folder / "absent.jpg"), str(folder / "damaged.jpg")]
    fetched = dict(source.fetch_in_turn([UriText(uri) for uri in uris]))
    turned, absent, damaged = (fetched[i] for i in range(3))
    assert (turned, damaged) == ((folder / "turned.jpg").read_bytes(), (folder / "damaged.jpg").read_bytes())
    image = source.decode(turned)
    assert isinstance(image, DecodedImage)
    assert (image.pixels.shape, image.exif_orientation) == ((30, 20, 3), 6)
    assert source.decode(absent) is absent
    assert code(source.decode(damaged)) == "corrupt_image"
