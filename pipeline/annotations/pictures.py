"""Pictures by URI: fetched and decoded, or why not. Every job reads its images here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.image_uris import picture_uri
from pipeline.annotations.run_json import RunJson
from pipeline.config.images import ImagesConfig
from pipeline.images.decode import DecodedImage, ImageError, decode_image, picture_size
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import Fetched, FetchError
from pipeline.storage.uris import Uri, UriError, UriText

FETCH, DECODE = "fetch", "decode"


@dataclass(frozen=True)
class PictureSource:
    """Fetches and decodes pictures by URI. Picklable; clients are opened in the process that reads.

    Attributes:
        fetcher: gets the bytes, and decides what may be read.
        max_pixels: pictures of more are refused before they are decoded.
        apply_exif: turn pictures as their EXIF orientation says.
        image_root: what relative URIs are relative to; ``None`` for the current directory.
    """

    fetcher: Fetcher = field(default_factory=Fetcher)
    max_pixels: int = 100_000_000
    apply_exif: bool = True
    image_root: Uri | None = None

    @classmethod
    def of_config(cls, config: ImagesConfig, image_root: Uri | None = None) -> PictureSource:
        """With the limits and the access policy of a config.

        Args:
            config: a job's ``images`` section.
            image_root: as above. It may be read from, whatever the policy says.
        """
        policy = config.access_policy()
        if image_root is not None and policy.roots is not None:
            policy = AccessPolicy((*policy.roots, image_root))
        return cls(Fetcher(config, policy), config.max_pixels, config.apply_exif, image_root)

    @classmethod
    def of_run(cls, run: RunJson, image_root: Uri | None = None) -> PictureSource:
        """As a run of annotate read its images.

        Raises:
            OutputError: its ``run.json`` does not say how.
        """
        return cls.of_config(run.images_config(), image_root)

    def read_many(self, uris: Sequence[UriText | None]) -> list[NDArray[np.uint8] | ImageFailure]:
        """RGB ``(H, W, 3)`` pictures in order, fetched concurrently; failures as values.

        Args:
            uris: None, as an output has it for images that came as bytes, is a failure too.
        """
        results: list[NDArray[np.uint8] | ImageFailure | None] = [None] * len(uris)
        for i, data in self.fetch_in_turn(uris):
            picture = self.decode(data)
            results[i] = picture if isinstance(picture, ImageFailure) else picture.pixels
        return [result for result in results if result is not None]

    def fetch_in_turn(self, uris: Sequence[UriText | None]) -> Iterator[tuple[int, bytes | ImageFailure]]:
        """The bytes of `fetch_turns` one by one, with their positions, in any order."""
        for turn in self.fetch_turns(uris):
            while turn:
                i, found = turn.popitem()
                yield i, found if isinstance(found, ImageFailure) else found.data

    def fetch_turns(self, uris: Sequence[UriText | None]) -> Iterator[dict[int, Fetched | ImageFailure]]:
        """Encoded pictures with their versions by their positions, no more at once than fit into memory.

        As `pipeline.storage.fetch.fetcher.Fetcher.fetch_turns`, which fetches the next ones while these are worked on.

        Args:
            uris: what `read_many` takes.
        """
        places = [self._place(uri) for uri in uris]
        named = [(i, place) for i, place in enumerate(places) if not isinstance(place, ImageFailure)]
        refused: dict[int, Fetched | ImageFailure] = {
            i: place for i, place in enumerate(places) if isinstance(place, ImageFailure)
        }
        for turn in self.fetcher.fetch_turns([place for _, place in named]):
            yield {**refused, **{named[i][0]: _fetched(turn.pop(i)) for i in list(turn)}}
            refused = {}
        if refused:
            yield refused

    def find_local(self, uri: UriText | None) -> str | ImageFailure | None:
        """The path of a picture in a local file, absolute and without links; ``None`` for what lies elsewhere."""
        place = self._place(uri)
        if isinstance(place, ImageFailure):
            return place
        try:
            return self.fetcher.find_local(place)
        except FetchError as error:
            return _failure(error)

    def decode(self, data: bytes | ImageFailure) -> DecodedImage | ImageFailure:
        """An encoded picture decoded. One that could not be fetched stays the failure that it is."""
        if isinstance(data, ImageFailure):
            return data
        try:
            return decode_image(data, max_pixels=self.max_pixels, apply_exif=self.apply_exif)
        except ImageError as error:
            return ImageFailure(DECODE, error.code, str(error))

    def size(self, data: bytes | ImageFailure) -> tuple[int, int] | None:
        """``(H, W)`` that `decode` should give, by the header; ``None`` where there is no telling."""
        if isinstance(data, ImageFailure):
            return None
        return picture_size(data, max_pixels=self.max_pixels, apply_exif=self.apply_exif)

    def _place(self, uri: UriText | None) -> UriText | ImageFailure:
        if uri is None:
            return ImageFailure(FETCH, "no_uri", "the image came as bytes in the manifest, and there is no URI to read")
        try:
            return picture_uri(uri, self.image_root)
        except UriError as error:
            return ImageFailure(FETCH, error.code, str(error))


def _fetched(found: Fetched | FetchError) -> Fetched | ImageFailure:
    return _failure(found) if isinstance(found, FetchError) else found


def _failure(error: FetchError) -> ImageFailure:
    return ImageFailure(FETCH, error.code, f"{error.uri}: {error.detail}")
