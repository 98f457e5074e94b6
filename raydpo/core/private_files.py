"""Files under the temporary folder that processes of one user make once and reuse.

A function makes the file, and a name says what it is made from. The path of the file or folder
ends with the hash of its content, so that raydpo notices a truncated or changed file, removes it,
and makes it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from raydpo.core.checked import file_hash
from raydpo.core.errors import RunError
from raydpo.core.progress import logger
from raydpo.core.storage import fingerprint

#: What nobody used for so long is removed.
UNUSED_DAYS: Final = 7.0
#: The files together take at most this share of their disk; the longest unused ones go first.
DISK_FRACTION: Final = 0.25
_SECONDS_PER_DAY: Final = 86400.0
#: A finished file or folder: its name, and the hash of its content.
_FINISHED: Final = re.compile(r"(.+)\.([0-9a-f]{64})")
_PARTIAL: Final = "partial-"
_LOCK: Final = ".lock"
#: Shared locks that this process holds until it ends, by path.
_locks: dict[Path, int] = {}


def private_folder() -> Path:
    """This user's own folder under the temporary one; nobody else can enter it.

    Raises:
        RunError: it belongs to another user, others can write into it, or it is no folder.
    """
    path = Path(tempfile.gettempdir()) / f"raydpo-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    problem = None
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder"
    elif found.st_uid != os.getuid():
        problem = f"belongs to the user {found.st_uid}"
    elif found.st_mode & 0o022:
        problem = f"has the mode {stat.S_IMODE(found.st_mode):04o}: others can write into it"
    if problem is not None:
        raise RunError(
            f"{path} {problem}",
            f"it is a folder of the user {os.getuid()}, with the mode 0700: what lies there is used",
            "remove it, or let TMPDIR name another temporary folder",
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return the file or folder of that name; make it if it is missing or incomplete.

    Nobody removes it while this process lives. If several processes make it at once, one whole
    file remains.

    Args:
        name: hash of what it is made from, in a few words; without dots.
        make: writes it to the path that it is given.

    Raises:
        RunError: see `private_folder`.
    """
    folder = private_folder()
    _hold(folder / f"{name}{_LOCK}")
    for path in sorted(folder.glob(f"{name}.*")):
        match = _FINISHED.fullmatch(path.name)
        if match is None:
            continue
        found = content_hash(path)
        if found == match[2]:
            return path
        text = "%s was changed since it was written (expected %s, found %s): it is made again"
        logger.warning(text, path, match[2], found)
        _remove(path)
    path = _make(folder, name, make)
    clean(folder)
    return path


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of a folder's files."""
    if not path.is_dir():
        return file_hash(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint({file.relative_to(path).as_posix(): file_hash(file) for file in files})


def clean(folder: Path) -> None:
    """Remove what was not used for `UNUSED_DAYS`, and the rest down to `DISK_FRACTION`.

    What a living process uses stays, and so do files that are being made.
    """
    now = time.time()
    entries = [path for path in folder.iterdir() if _may_be_removed(path)]
    used = {path: _last_used(path) for path in entries}
    sizes = {path: _size(path) for path in entries}
    total, room = sum(sizes.values()), shutil.disk_usage(folder).total * DISK_FRACTION
    for path in sorted(entries, key=lambda path: used[path]):
        old = now - used[path] > UNUSED_DAYS * _SECONDS_PER_DAY
        if (old or (total > room and _FINISHED.fullmatch(path.name))) and _remove_unused(path):
            total -= sizes[path]
    for lock in folder.glob(f"*{_LOCK}"):
        state = _states([lock])
        if state and now - state[0].st_mtime > UNUSED_DAYS * _SECONDS_PER_DAY:
            with _alone(lock):
                """Nothing is left that it stands for."""


def _make(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=_PARTIAL))
    try:
        made = partial / "made"
        make(made)
        for file in [made, *made.rglob("*")]:
            _to_disk(file)
        path = folder / f"{name}.{content_hash(made)}"
        try:
            made.rename(path)
        except OSError:
            if not path.exists():
                raise  # else another process was first: its folder is as good
        _to_disk(folder)
        return path
    finally:
        shutil.rmtree(partial)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hold(lock: Path) -> None:
    """Hold a lock until this process ends, as a sign that it uses the file."""
    if lock in _locks:
        os.utime(lock)
        return
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):  # cleaned before the lock was had
            if lock.stat().st_ino == os.fstat(handle).st_ino:
                os.utime(handle)
                _locks[lock] = handle
                return
        os.close(handle)


def _may_be_removed(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix != _LOCK


def _lock_of(path: Path) -> Path:
    match = _FINISHED.fullmatch(path.name)
    return path.with_name(f"{match[1] if match else path.name}{_LOCK}")


def _last_used(path: Path) -> float:
    return max((state.st_mtime for state in _states([path, _lock_of(path)])), default=math.inf)


def _size(path: Path) -> int:
    below = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(state.st_size for state in _states([path, *below]))


def _states(paths: list[Path]) -> list[os.stat_result]:
    """What is known of those files that are there: other processes remove theirs meanwhile."""
    states: list[os.stat_result] = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            states.append(path.lstat())
    return states


def _remove_unused(path: Path) -> bool:
    """Remove a file or folder unless a living process uses it; whether it is gone."""
    with _alone(_lock_of(path)) as alone:
        if alone:
            _remove(path)
    return alone


@contextlib.contextmanager
def _alone(lock: Path) -> Generator[bool]:
    """Yield whether nobody else holds the lock; if so, delete its file after the block."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
