"""Whether a folder that a job is to write in is its own: asked before anything in it is changed, the lock included.

A folder is free if nothing visible lies in it. It is a job's own if something in it proves that, or if it holds a lock
of ours and nothing but what that job writes: what a run leaves that ended before it wrote a result. Every other folder
is somebody else's, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.messages.examples import Examples
from pipeline.storage.lock.holder import LOCK_NAME, read_holder
from pipeline.storage.lock.scratch import SCRATCH_FOLDER
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri


class ForeignFolder(UserError):
    """The folder that a job was told to write in is somebody else's; nothing in it was changed."""


@dataclass(frozen=True)
class OutputKind:
    """What tells a job's output folder.

    Attributes:
        job: its name, for people.
        names: of what it leaves directly in the folder beside lock and scratch; folders end with ``/``.
        is_proven: whether the files with such names, given all visible names in a folder, show that it is this job's:
            ``None`` where they do not tell, ``False`` where they are another program's.
    """

    job: str
    names: re.Pattern[str]
    is_proven: Callable[[Uri, frozenset[str]], bool | None]


def check_own(uri: Uri, kind: OutputKind) -> None:
    """Raise unless a folder is free, or this job's own. Hidden names, which begin with ``.``, are passed over.

    Raises:
        ForeignFolder: it is not; the message says what is there.
        OSError: it cannot be listed.
    """
    files, folders = open_objects(uri).list("")
    found = [entry.name for entry in files] + [f"{name}/" for name in folders]
    names = frozenset(name for name in found if not name.startswith("."))
    if not names:
        return
    proven = kind.is_proven(uri, names)
    if proven is None:
        own = {LOCK_NAME, f"{SCRATCH_FOLDER}/"}
        proven = all(name in own or kind.names.fullmatch(name) for name in names) and read_holder(uri) is not None
    if not proven:
        raise ForeignFolder(
            f"{uri} is not empty, and not what {kind.job} writes: it holds {Examples.of(sorted(names))}. Nothing there "
            "was changed; give output.uri a folder of its own"
        )
