"""What a format is: a name, a line of help, and a writer of a file or of a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO, ClassVar

from pipeline.export.labels import Labels
from pipeline.export.target import Folder, whole_file, whole_folder
from pipeline.storage.uris import Uri


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A format that annotations are exported to.

    Attributes:
        name: on the command line.
        about: a phrase: what it is.
        is_lossy: whether masks are not exact; the writer's remarks say how much is lost.
        is_results: whether it is for evaluation, which counts every detection, even one without a pixel. Labels for
            training or correction leave these out.
    """

    name: str
    about: str
    is_lossy: bool = False
    is_results: bool = False
    target: ClassVar[str]

    @abstractmethod
    def write_whole(self, labels: Labels, out: Uri, overwrite: bool) -> Sequence[str]:
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
    """A format of one file.

    Attributes:
        write: fills the file, and returns its remarks.
    """

    write: Callable[[Labels, BinaryIO], Sequence[str]]
    target = "file"

    def write_whole(self, labels: Labels, out: Uri, overwrite: bool) -> Sequence[str]:
        """See `Format`."""
        with whole_file(out, overwrite) as file:
            return self.write(labels, file)


@dataclass(frozen=True, kw_only=True)
class FolderFormat(Format):
    """A format of a folder, to which a record of the export is added.

    Attributes:
        write: fills the folder, and returns its remarks.
    """

    write: Callable[[Labels, Folder], Sequence[str]]
    target = "folder"

    def write_whole(self, labels: Labels, out: Uri, overwrite: bool) -> Sequence[str]:
        """See `Format`."""
        with whole_folder(out, overwrite) as folder:
            remarks = self.write(labels, folder)
            folder.finish({"format": self.name, **labels.report(), **asdict(labels.tally), "remarks": list(remarks)})
        return remarks
