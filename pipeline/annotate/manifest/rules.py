"""What every manifest is, whatever its format: its columns, its units, and the rules that its rows must keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.versions import named_by_user, version_sources
from pipeline.annotate.stages.rows import WORKING_NAMES
from pipeline.annotations.schema import RESERVED_NAMES
from pipeline.errors import UserError
from pipeline.storage.uris import Uri, UriError, UriText, resolve
from pipeline.tables.arrow_types import in_one_piece, is_text

ID, URI, BYTES = "image_id", "image_uri", "image_bytes"
# Of the upright picture, in pixels, as COCO and most tables call them. Hints: nothing but the order of work depends on
# them, so they may be missing, null, wrong or no numbers at all.
HEIGHT, WIDTH = "height", "width"
# What to do about URIs that cannot be ids.
TABLE_CURE = "give the manifest an id column"
LIST_CURE = "write a table instead of a list: CSV with the columns image_id and image_uri"
# Control characters in names, and the lone surrogates that stand for what is not UTF-8.
UNSHOWABLE = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")
NUMBER = "number in the source"  # of a row; a column of copies
# A side in text, as pandas writes those of a column with gaps, too.
_LONGEST_SIDE = (1 << 31) - 1
_SIDE_TEXT = r"^[0-9]{1,9}(\.0*)?$"
_ABSOLUTE = r"\A(?:/|[^/]+://)"
_PERHAPS_REFUSED = r"\.\.|:|%3[Aa]|\\"  # of relative paths: those that climb, and URLs with a typing error
# Everything that is not shown whole is such: parameters, users, odd hosts and schemes, mistakes.
_PERHAPS_SECRET = r"[?#&;@\\\[\]]|\A[\x00-\x20]|\A//|:(?:[^/]|/[^/])|%3[Aa]|\A(?:[^A-Za-z/][^/]*)?[^/]*[^A-Za-z0-9+.\-/][^/]*://|\A(?:[^A-Za-z/][^/]*)?://"


class ManifestError(UserError):
    """A manifest that cannot be used. The message names file, row or column and says what to do."""


@dataclass(frozen=True)
class ReadUnit:
    """What one task reads: a row group of a Parquet file."""

    file: Uri
    row_group: int
    num_rows: int


@dataclass(frozen=True)
class Columns:
    """Names in the source; ``None`` where it has no such column. Copies have ``number``: the row's in the source.

    ``versions`` are by the names of `VERSION_COLUMNS`; single files may have fewer of them.

    Of an image that is a struct, as Hugging Face's datasets have it, ``uri`` and ``bytes`` are the fields, called as
    Parquet calls them: ``image.path``, ``image.bytes`` (`pick` takes them).
    """

    id: str | None
    uri: str | None
    bytes: str | None
    number: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestParts:
    """What a reader found or made: units, and how to read them.

    Attributes:
        columns: names in the units' files; without one for ids, the ids are the URIs.
        id_type: of the images' ids: ``int64`` or ``string``.
        carried: the carried columns; single files may hold narrower types that cast to these.
        image_root: what relative URIs are relative to.
        row_word: what messages call a row of the source.
        version: of the table that was read; ``""`` for what has none.
    """

    units: tuple[ReadUnit, ...]
    columns: Columns
    id_type: pa.DataType
    carried: pa.Schema
    image_root: Uri | None
    row_word: str = "row"
    version: str = ""


def find_columns(
    config: ManifestConfig,
    available: Iterable[str],
    file: Uri,
    *,
    bytes_allowed: bool = False,
    check_carried: bool = True,
) -> Columns:
    """Match the description with the columns that a file has.

    A column with its default name may be missing; one that was named by the user may not.

    Raises:
        ManifestError: a column is missing or there twice.
    """
    names = list(available)

    def find(name: str, default: str) -> str | None:
        if name in names:
            return name
        if name != default:
            raise missing_column(name, names, file)
        return None

    if not bytes_allowed and config.bytes_column != BYTES:
        raise ManifestError(f"{file}: image bytes ({config.bytes_column!r}) are read from Parquet only")
    bytes_column = find(config.bytes_column, BYTES) if bytes_allowed else None
    columns = Columns(
        find(config.id_column, ID), find(config.uri_column, URI), bytes_column, versions=version_sources(config)
    )
    if columns.uri is None and columns.bytes is None:
        raise missing_column(config.uri_column, names, file)
    if columns.uri is None and columns.id is None:
        raise missing_column(config.id_column, names, file)
    others = (*config.carry, *named_by_user(config)) if check_carried else ()
    for name in (columns.id, columns.uri, columns.bytes, *others):
        if name is not None and name not in names:
            raise missing_column(name, names, file)
        if name is not None and names.count(name) > 1:
            raise ManifestError(f"{file} has {names.count(name)} columns named {name!r}: rename one")
    return columns


def check_carry(carry: Collection[str]) -> None:
    """Refuse carried columns that the output, or the rows on their way to it, could not hold under their names.

    DuckDB and Spark do not tell names apart by case, so the output's are taken in any case, as are those of each other;
    and a dot after one of them is how Parquet calls what is in it.
    """
    seen: dict[str, str] = {}
    for name in carry:
        taken = seen.setdefault(name.casefold(), name)
        own = next((own for own in RESERVED_NAMES if name.casefold().partition(".")[0] == own), None)
        if own is not None:
            its = "its own" if name == own else f"{own!r}"
            raise ManifestError(f"column {name!r} cannot be carried: the output has {its}; rename it in the manifest")
        if name in WORKING_NAMES or name == NUMBER:
            raise ManifestError(
                f"column {name!r} cannot be carried: the stages use that name for their own; rename it in the manifest"
            )
        if taken != name:
            raise ManifestError(
                f"column {name!r} cannot be carried: it differs from {taken!r} in case alone; rename it in the manifest"
            )


def check_ids(ids: pa.Array, name_row: Callable[[int], str], cure: str = "give the row an id or remove it") -> None:
    """Refuse null and empty ids; ``name_row`` gives an index in the array its name in the message."""
    unusable = pc.is_null(ids)
    if not pa.types.is_integer(ids.type):
        unusable = pc.or_(unusable, pc.fill_null(pc.equal(pc.binary_length(ids), 0), True))
    index = pc.index(unusable, True).as_py()
    if index >= 0:
        raise ManifestError(f"{name_row(index)}: the id is null or empty; {cure}")


def check_uris(uris: pa.Array, root: Uri | None, name_row: Callable[[int], str]) -> None:
    """Refuse URIs that no image can be read from: null, empty, relative without a root, out of the root."""
    missing = pc.fill_null(pc.equal(pc.binary_length(uris), 0), True)
    index = pc.index(missing, True).as_py()
    if index >= 0:
        raise ManifestError(f"{name_row(index)}: the image URI is null or empty; fill it in or remove the row")
    relative = np.flatnonzero(is_relative(uris).to_numpy(zero_copy_only=False))
    if root is not None and len(relative):
        odd = pc.match_substring_regex(uris.take(pa.array(relative)), _PERHAPS_REFUSED)
        relative = relative[odd.to_numpy(zero_copy_only=False)]
    for index in relative.tolist():
        try:
            resolve(uris[index].as_py(), root)
        except UriError as error:
            raise ManifestError(f"{name_row(index)}: {error}{'; set image_root' if root is None else ''}") from None


def check_uris_as_ids(uris: pa.Array, root: Uri | None, name_row: Callable[[int], str], cure: str = TABLE_CURE) -> None:
    """Refuse as ids what is not shown whole (`UriText`): queries and credentials are secrets, and ids are written out.

    So two different ids are different where they are shown, too.

    Args:
        uris: where a manifest has no ids; null stays for others to judge.
        root: what relative ones are relative to.
        name_row: gives an index in the array its name in the message.
        cure: what people can do about it.
    """
    suspects = pc.fill_null(pc.match_substring_regex(uris, _PERHAPS_SECRET), False)
    for index in np.flatnonzero(suspects.to_numpy(zero_copy_only=False)).tolist():
        uri = UriText(uris[index].as_py())
        resolved = uri
        with suppress(UriError):  # relative, but the label of a row that brings its bytes
            resolved = resolve(uri.secret_text, root)
        if uri.holds_secrets or resolved.holds_secrets:
            raise ManifestError(
                f"{name_row(index)}: {str(uri if uri.holds_secrets else resolved)!r} has a query or credentials, or is "
                f"no proper URI, and as the row's id it would be written to the output; {cure}"
            )


def is_relative(uris: pa.Array) -> pa.BooleanArray:
    """Which URIs are relative, as `resolve` has it; null stays null."""
    return pc.invert(pc.match_substring_regex(uris, _ABSOLUTE))


def side_lengths(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of heights or widths, of any type, as int32; 0 where it does not hold a length."""
    values = in_one_piece(values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind, lengths = values.type, np.zeros(len(values))
    with suppress(pa.ArrowException):  # of text that is not UTF-8
        if is_text(kind):
            values = values.cast(pa.string())
            values = pc.if_else(pc.match_substring_regex(values, _SIDE_TEXT), values, None)
        if is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            lengths = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        is_length = (lengths >= 1) & (lengths <= _LONGEST_SIDE) & (lengths == np.floor(lengths))
    return pa.array(np.where(is_length, lengths, 0).astype(np.int32))


def has_sizes(names: Collection[str]) -> bool:
    """Whether a table with these columns may say how large the images are."""
    names = list(names)
    return names.count(HEIGHT) == names.count(WIDTH) == 1


def missing_column(name: str, available: Iterable[str], file: Uri | str) -> ManifestError:
    """What to say when a column is not there."""
    return ManifestError(f"{file} has no column {name!r}; it has: {', '.join(available) or 'none'}")


def row_namer(file: Uri, word: str, numbers: Sequence[int]) -> Callable[[int], str]:
    """How messages call the row with a given index: ``manifest.csv, row 7``."""
    return lambda index: f"{file}, {word} {numbers[index]}"
