"""Who holds the lock of an output: the content of the lock file, and whether that process is known to be dead."""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone

from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri

LOCK_NAME = "_lock.json"
MAX_LOCK_BYTES = 100_000  # a lock of ours has 400
MAX_LEASE_S = 86_400.0

_MAX_PID = 2**31 - 1


@dataclass(frozen=True)
class Holder:
    """What the lock file says.

    Attributes:
        run_id: the run that holds the lock, for people.
        token: unique to one acquisition.
        host: name of its machine, for people.
        namespace: identifies the kernel and process namespace in which ``pid`` means something; ``""`` if
            unknown.
        pid: of the process that renews.
        process_started: the kernel's start time of that process; ``""`` if unknown.
        acquired_at: when it took the lock, UTC, for people.
        lease_s: the holder renews well within this time, or counts itself out.
        heartbeat: number of renewals so far, so that each of them changes the file.
        released: the run is over.
    """

    run_id: str
    token: str
    host: str
    namespace: str
    pid: int
    process_started: str
    acquired_at: str
    lease_s: float
    heartbeat: int = 0
    released: bool = False

    def encode(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, content: bytes) -> Holder | None:
        """``None`` if the content makes no sense. Keys of later versions are passed over."""
        try:
            values = json.loads(content)
            holder = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (TypeError, ValueError, RecursionError):
            return None
        return holder if holder._makes_sense() else None

    def _makes_sense(self) -> bool:
        texts = (self.run_id, self.token, self.host, self.namespace, self.process_started, self.acquired_at)
        return (
            all(isinstance(text, str) for text in texts)
            and type(self.pid) is int
            and 0 < self.pid <= _MAX_PID
            and type(self.lease_s) in (int, float)
            and 0 < self.lease_s <= MAX_LEASE_S  # neither of which NaN and Infinity are
            and type(self.heartbeat) is int
            and type(self.released) is bool
        )

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host} (pid {self.pid}) since {self.acquired_at}"


def read_holder(uri: Uri) -> Holder | None:
    """What the lock file of an output folder says; ``None`` if there is none, or it makes no sense.

    Raises:
        TooLarge: the file is another program's.
        OSError: it cannot be read.
    """
    try:
        return Holder.decode(open_objects(uri).read(LOCK_NAME, MAX_LOCK_BYTES)[0])
    except FileNotFoundError:
        return None


def new_holder(run_id: str, lease_s: float) -> Holder:
    """This process, about to acquire."""
    pid = os.getpid()
    return Holder(
        run_id=run_id,
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        namespace=_process_namespace(),
        pid=pid,
        process_started=_process_state(pid)[1],
        acquired_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        lease_s=lease_s,
    )


def _process_namespace() -> str:
    """Containers share host names, and each has its own process 1: only this says where a pid means something."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_state(pid: int) -> tuple[str, str]:
    """State letter and start time, both ``""`` where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()  # the name before may hold anything
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def is_dead(holder: Holder) -> bool:
    """Whether the holder's process is known to have ended; a pid that another process has now counts."""
    if not holder.namespace or holder.namespace != _process_namespace():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # there is one, of another user
    state, started = _process_state(holder.pid)
    return state in ("Z", "X") or bool(started and holder.process_started and started != holder.process_started)
