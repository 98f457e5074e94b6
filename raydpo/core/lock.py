"""The lock of a run directory: one process at a time writes into it.

A block holds the directory, or an error names the holder. The kernel locks a local directory;
elsewhere a driver holds a lease that it renews.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Final

from raydpo.core.lease import leased, locked_by
from raydpo.core.storage import Folder, make_folders

#: What a file system says that does not know `flock`.
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(run: Folder) -> Generator[None]:
    """Hold the run directory; the kernel releases it when the process ends, however it ends.

    A folder in an object store, or on a file system without locks, is held by a lease.

    Raises:
        RunLockedError: another live process holds it; the message says which.
    """
    if not run.is_local:
        with leased(run):
            yield
        return
    path = run.local_path("lock")
    make_folders(path.parent)
    with open(path, "a+", encoding="utf-8") as file:
        if not _flocked(file, run):
            with leased(run):
                yield
            return
        file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        file.flush()
        yield


def _flocked(file: IO[str], run: Folder) -> bool:
    """Whether the kernel locked the file; it is False where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        file.seek(0)
        raise locked_by(run, file.read().strip() or "another process") from error
    return True
