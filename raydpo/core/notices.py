"""Pass lines from workers on a part to the driver's log.

The lines arrive some seconds later, through small files in the stage's folder, which every worker
and the driver can reach. The driver deletes the files once it has logged them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from raydpo.core.errors import said_by
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger
from raydpo.core.storage import Folder

_FOLDER: Final = "_notices"
_SECONDS_BETWEEN_LOOKS: Final = 2.0


@dataclass
class _Part:
    """The lines about a part; each new line rewrites the file, one thread at a time."""

    folder: Folder
    name: str
    lines: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)


_part: ContextVar[_Part | None] = ContextVar("part", default=None)


def tell(line: str) -> None:
    """Let the driver log a line about this process's part; if that fails, log it here."""
    part = _part.get()
    if part is None:
        logger.warning("%s", line)
        return
    with part.lock:
        part.lines.append(line)
        try:
            part.folder.write_json(part.name, part.lines)
        except OSError as error:  # what the worker does matters more than what it says of it
            logger.warning("%s (not told to the driver: %s)", line, said_by(error))


@contextmanager
def telling(stage: Folder, name: str) -> Generator[None]:
    """Make `tell` in this block write lines about the part `name` of a stage."""
    token = _part.set(_Part(stage.child(_FOLDER), f"{name}.{os.getpid()}.json"))
    try:
        yield
    finally:
        _part.reset(token)


@contextmanager
def notices_shown(stages: Iterable[tuple[Folder, str]]) -> Generator[None]:
    """Log workers' lines on these stages, under the stages' names, while the block runs."""
    shown: dict[tuple[str, str], int] = {}
    sources = [(folder.child(_FOLDER), what) for folder, what in stages]

    def show() -> None:
        for folder, what in sources:
            for name in folder.files():
                lines = folder.read_json(name)
                before = shown.get((folder.uri, name), 0)
                for line in lines[before:]:
                    logger.warning("[%s] %s: %s", what, name.partition(".")[0], line)
                shown[folder.uri, name] = len(lines)

    for folder, _ in sources:
        folder.delete()
    try:
        with periodically("raydpo-notices", show, _SECONDS_BETWEEN_LOOKS):
            yield
    finally:
        _without_harm(show)
        for folder, _ in sources:
            _without_harm(folder.delete)


def _without_harm(act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - lines may be lost, and the work goes on
        logger.debug("notices of workers: %s", said_by(error))
