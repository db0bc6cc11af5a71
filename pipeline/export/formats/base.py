"""What a format is: a name, a line of help, the options that it takes, and a writer of a file or of a folder.

Nothing here weighs: the command line asks before anything is opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

from pipeline.export.errors import ExportError
from pipeline.storage.uris import Uri, UriText

if TYPE_CHECKING:
    from pipeline.export.labels import Labels
    from pipeline.export.target import Folder

Images = Literal["none", "link", "copy"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one may ask for beside the labels; each format takes some of it. The defaults ask for nothing.

    Attributes:
        images: whether the pictures are put beside their labels: as links to local files, or as copies.
        val_fraction: share of the images that is for validation, above 0 and below 1; ``None`` makes no split.
        image_prefix: what stands before an image's path below the image root, in the place of that root.
        images_per_file: the result is a folder of files of at most so many images.
        polygons: masks as polygons and not as run lengths.

    Raises:
        ExportError: a number that is none of these.
    """

    images: Images = "none"
    val_fraction: float | None = None
    image_prefix: UriText | None = None
    images_per_file: int | None = None
    polygons: bool = False

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ExportError(f"{flag('val_fraction')} must be above 0 and below 1, not {self.val_fraction}")
        if self.images_per_file is not None and self.images_per_file < 1:
            raise ExportError(f"{flag('images_per_file')} must be at least 1, not {self.images_per_file}")

    def given(self) -> dict[str, Any]:
        """What was asked for, by the names of the attributes; fit to be printed."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return {name: str(value) if isinstance(value, UriText) else value for name, value in values.items()}


NO_OPTIONS = Options()


def flag(option: str) -> str:
    """An attribute of `Options` as the command line has it."""
    return f"--{option.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A format that annotations are exported to.

    Attributes:
        name: on the command line.
        about: a phrase: what it is.
        takes: the attributes of `Options` that mean something to it.
        is_lossy: whether masks are not exact; the writer's remarks say how much is lost.
        is_results: whether it is for evaluation, which counts every detection, even one without a pixel. Labels for
            training or correction leave these out.
    """

    name: str
    about: str
    takes: tuple[str, ...] = ()
    is_lossy: bool = False
    is_results: bool = False
    target: ClassVar[str]

    @abstractmethod
    def write_whole(self, labels: Labels, out: Uri, overwrite: bool, options: Options) -> Sequence[str]:
        """Write the export, whole or not at all.

        Returns:
            What people should know about it, a sentence each.

        Raises:
            ExportError, OutputError, UriError: it cannot be made.
            OSError: the storage fails.
        """

    def help_line(self) -> str:
        """For people: name, what it is, whether it is exact, what OUT is."""
        exact = "Exact, every detection" if self.is_results else "Exact"
        quality = "Lossy: the summary says how much" if self.is_lossy else exact
        return f"{self.name:<13} {self.about}. {quality}. OUT is a {self.target}."


@dataclass(frozen=True, kw_only=True)
class FileFormat(Format):
    """A format of one file, or of a folder of several where it takes ``images_per_file``.

    Attributes:
        write: fills the file, and returns its remarks.
        write_parts: fills a folder with files of ``images_per_file`` images, likewise.
    """

    write: Callable[[Labels, BinaryIO, Options], Sequence[str]]
    write_parts: Callable[[Labels, Folder, Options], Sequence[str]] | None = None
    target = "file"

    def write_whole(self, labels: Labels, out: Uri, overwrite: bool, options: Options) -> Sequence[str]:
        """See `Format`."""
        from pipeline.export.target import whole_file

        if options.images_per_file is not None and self.write_parts is not None:
            return _write_folder(self, self.write_parts, labels, out, overwrite, options)
        with whole_file(out, overwrite) as file:
            return self.write(labels, file, options)


@dataclass(frozen=True, kw_only=True)
class FolderFormat(Format):
    """A format of a folder, to which a record of the export is added.

    Attributes:
        write: fills the folder, and returns its remarks.
    """

    write: Callable[[Labels, Folder, Options], Sequence[str]]
    target = "folder"

    def write_whole(self, labels: Labels, out: Uri, overwrite: bool, options: Options) -> Sequence[str]:
        """See `Format`."""
        return _write_folder(self, self.write, labels, out, overwrite, options)


def _write_folder(
    format: Format,
    write: Callable[[Labels, Folder, Options], Sequence[str]],
    labels: Labels,
    out: Uri,
    overwrite: bool,
    options: Options,
) -> Sequence[str]:
    from pipeline.export.target import whole_folder

    with whole_folder(out, overwrite) as folder:
        remarks = write(labels, folder, options)
        record = {"format": format.name, "options": options.given(), **labels.report(), **asdict(labels.tally)}
        folder.finish({**record, "remarks": list(remarks)})
    return remarks
