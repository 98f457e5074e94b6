"""A store in memory whose operations wait for their turn: `stepped://A/run` is driver A's address
of it.

A test can stop two drivers, which reach the same files by separate addresses, at each operation,
with all their threads, as SIGSTOP stops a process.
"""

from __future__ import annotations

import io
import threading
import time
from datetime import UTC, datetime
from typing import Any, ClassVar

import fsspec

#: A turn that its driver does not take in this time goes to the others: it sleeps, or is done.
_PATIENCE_SECONDS = 1.0


class Turns:
    """Who may do the next operation: drivers by name. Renewals of a lease take no turn of their own."""

    def __init__(self, turns: list[str]) -> None:
        self.turns = list(turns)
        self.operations: dict[str, list[str]] = {}
        self._at = time.monotonic()
        self._changed = threading.Condition()

    def wait(self, driver: str, operation: str) -> None:
        """Return when it is this driver's turn; an address that is no driver's never waits."""
        with self._changed:
            while self.turns and self.turns[0] != driver:
                left = self._at + _PATIENCE_SECONDS - time.monotonic()
                if left <= 0:
                    self._next()
                else:
                    self._changed.wait(left)
            if threading.current_thread().name == "raydpo-lease":
                return
            self.operations.setdefault(driver, []).append(operation)
            if self.turns:
                self._next()

    def end(self, driver: str) -> None:
        """A driver that is done has no more turns."""
        with self._changed:
            self.turns = [turn for turn in self.turns if turn != driver]
            self._changed.notify_all()

    def _next(self) -> None:
        self.turns.pop(0)
        self._at = time.monotonic()
        self._changed.notify_all()


class SteppedStore(fsspec.AbstractFileSystem):
    """Files by their whole path; the first folder of a path says who asks."""

    protocol = "stepped"
    cachable = False
    files: ClassVar[dict[str, tuple[bytes, datetime]]] = {}
    turns: ClassVar[Turns] = Turns([])

    def _step(self, operation: str, path: str) -> str:
        driver, _, inner = self._strip_protocol(path).strip("/").partition("/")
        if driver in ("A", "B"):
            self.turns.wait(driver, f"{operation} {inner}")
        return inner

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._info(path, self._step("info", path))

    def _info(self, path: str, inner: str) -> dict[str, Any]:
        name = self._strip_protocol(path).strip("/")
        files = dict(self.files)
        if inner in files:
            return _entry(name, files[inner])
        if any(file.startswith(f"{inner}/") for file in files):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def find(self, path: str, maxdepth: int | None = None, **_: Any) -> dict[str, dict[str, Any]]:
        """Files below a folder, at one moment."""
        inner = self._step("list", path)
        driver = self._strip_protocol(path).strip("/").partition("/")[0]
        files = dict(self.files)
        deepest = inner.count("/") + (maxdepth or 99)
        return {
            f"{driver}/{name}": _entry(f"{driver}/{name}", file)
            for name, file in files.items()
            if name.startswith(f"{inner}/") and name.count("/") <= deepest
        }

    def isdir(self, path: str) -> bool:
        """Any name is a folder's, also one without files, as in an object store."""
        return self._strip_protocol(path).strip("/").partition("/")[2] not in self.files

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        if mode == "rb":
            inner = self._step("read", path)
            if inner not in self.files:
                raise FileNotFoundError(path)
            return io.BytesIO(self.files[inner][0])
        return _Written(self, path)

    def rm(self, path: str, recursive: bool = False, **_: Any) -> None:
        inner = self._step("delete", path)
        names = [inner]
        if recursive:
            names = [name for name in list(self.files) if name.startswith(f"{inner}/")]
        for name in names:
            self.files.pop(name, None)

    def rm_file(self, path: str) -> None:
        self.rm(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are there with their files."""


def _entry(name: str, file: tuple[bytes, datetime]) -> dict[str, Any]:
    return {"name": name, "size": len(file[0]), "type": "file", "mtime": file[1]}


class _Written(io.BytesIO):
    """A file that is in the store once it is closed."""

    def __init__(self, store: SteppedStore, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            inner = self._store._step("write", self._path)
            self._store.files[inner] = (content, datetime.now(UTC))
        super().close()


fsspec.register_implementation("stepped", SteppedStore, clobber=True)
