"""Which tar shards a manifest names: one, a folder of them, or a pattern; and what each is called."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.annotate.manifest.rules import UNSHOWABLE, ManifestError
from pipeline.storage.listing import is_folder, list_files
from pipeline.storage.uris import Uri, UriText

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 1_000_000


@dataclass(frozen=True)
class Shard:
    """A shard, and what it is called in the ids of its pictures; whether it may have an index beside it."""

    name: str
    uri: Uri
    may_have_idx: bool = True

    @property
    def is_compressed(self) -> bool:
        """Whether no range of it can be read."""
        return self.uri.path.lower().endswith((".gz", ".tgz"))

    @property
    def place(self) -> str:
        """The shard in the URIs of its members."""
        return self.uri.secret_text if self.uri.scheme != "file" else f"file://{quote(os.fsencode(self.uri.path))}"

    @property
    def idx(self) -> UriText | None:
        """``shard.idx`` of ``shard.tar``; ``None`` if none is there, as far as is known, or none can be named."""
        has_one = self.may_have_idx and self.place.lower().endswith(".tar") and not self.uri.holds_secrets
        return UriText(f"{self.place[:-4]}.idx") if has_one else None


def find_shards(uri: Uri, outside: Collection[Uri]) -> list[Shard]:
    """A shard, those of a folder in the order of their paths, or those that braces stand for.

    Args:
        uri: of one, of a folder, or a pattern.
        outside: folders that are left out where they lie in that one.

    Raises:
        ManifestError: there is none, or they are too many.
        StorageError: the folder is not there, or cannot be listed.
    """
    texts = expand_braces(uri.secret_text)
    if len(texts) == 1 and not uri.is_http and is_folder(uri):
        root = uri.absolute()
        suffixes = (*SHARD_SUFFIXES, ".idx")
        names = [file.path for file in list_files(uri, outside) if file.path.lower().endswith(suffixes)]
        known = {name for name in names if name.endswith(".idx")}
        found = [
            Shard(shown(name), Uri(root.below(name)), f"{name[:-4]}.idx" in known)
            for name in names
            if name.lower().endswith(SHARD_SUFFIXES)
        ]
        if not found:
            raise ManifestError(f"{uri} holds no tar shard ({', '.join(SHARD_SUFFIXES)})")
        return found
    uris = [Uri(text).absolute() for text in texts]
    names = [posixpath.basename(one.path) for one in uris]
    if len(set(names)) < len(names):  # data/{train,val}/0.tar
        shared = len(posixpath.commonpath([posixpath.dirname(one.path) for one in uris]))
        names = [one.path[shared:].lstrip("/") for one in uris]
    return [Shard(shown(name), one) for name, one in zip(names, uris, strict=True)]


def expand_braces(text: str) -> list[str]:
    """The names that ``{000..099}`` and ``{a,b}`` stand for, as in a shell; the text alone if it has neither.

    Raises:
        ManifestError: they are too many.
    """
    texts = [text]
    while (found := _BRACES.search(texts[0])) is not None and (choices := _choices(found[1])):
        if len(texts) * len(choices) > _MAX_SHARDS:
            raise ManifestError(f"{found[0]} stands for too many shards")
        # The first braces are the same in all of them, but what was put before these differs.
        cut = [_BRACES.split(one, maxsplit=1) for one in texts]
        texts = [f"{before}{choice}{after}" for before, _, after in cut for choice in choices]
    return texts


def _choices(inner: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(inner)
    if numbers is None:
        return inner.split(",") if "," in inner else []
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= _MAX_SHARDS:
        raise ManifestError(f"{{{inner}}} stands for too many shards")
    padded = any(len(text) > 1 and text[0] == "0" for text in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    step = 1 if last >= first else -1
    return [str(value).zfill(width) for value in range(first, last + step, step)]


def shown(name: str) -> str:
    """A name as ids have it: percent-encoded where it could not be written."""
    return quote(os.fsencode(name)) if UNSHOWABLE.search(name) else name
