"""The lock of a run directory: one process at a time writes into it.

What comes in: the directory. What goes out: a block that holds it, or an error that names the holder.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime

from raydpo.errors import RunLockedError
from raydpo.storage import Folder, make_folders


@contextmanager
def locked(run: Folder) -> Generator[None]:
    """Hold the run directory; the kernel lets go when the process ends, however it ends.

    Folders in object stores are not locked: they offer nothing to lock with.

    Raises:
        RunLockedError: another live process holds it; the message says which.
    """
    if not run.is_local:
        yield
        return
    path = run.local_path("lock")
    make_folders(path.parent)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise RunLockedError(
                f"{run.uri} is in use by {file.read().strip() or 'another process'}",
                "one run at a time writes into a run directory",
                "wait for it or end it, or give this run another `name`",
            ) from error
        file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        file.flush()
        yield
