"""How often a part is begun before its stage gives up on it.

What comes in: a worker that begins a part. What goes out: a note of it in the stage's folder,
which goes when the part is made. Ray begins a part again whenever its process or node is lost,
without end: a part that ends its process itself would never be told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from raydpo.errors import ClusterError, DataError, note_place
from raydpo.storage import Folder

_FOLDER: Final = "_attempts"
#: Nodes may be lost meanwhile, too: more than one is no sign of anything.
MOST_ATTEMPTS: Final = 5


@contextmanager
def attempted(stage: Folder, part: str, what: str) -> Generator[None]:
    """Count an attempt at a part; whatever the block raises ends the run, and counts no more.

    Args:
        stage: the stage's folder.
        part: of the part, for the message and for the note's name.
        what: the stage and round, for the message.

    Raises:
        ClusterError: it was begun `MOST_ATTEMPTS` times, and its process was lost each time.
    """
    folder, name = stage.child(_FOLDER), f"{part}.json"
    places = _places(folder, name)
    if len(places) >= MOST_ATTEMPTS:
        raise ClusterError(
            f"{what}: {part} was begun {len(places)} times, and its process was lost each time "
            f"({'; '.join(places)})",
            f"a part is begun at most {MOST_ATTEMPTS} times in one run",
            "see in Ray's logs (/tmp/ray/session_latest/logs) what ended them, often missing memory "
            "or a crash in native code; smaller parts (rows_per_part) or batches need less memory",
        )
    folder.write_json(name, [*places, f"process {os.getpid()} on {socket.gethostname()}"])
    try:
        yield
    except Exception as error:
        note_place(error, f"{what}, {part}, on {socket.gethostname()}")
        raise
    finally:
        folder.delete(name)


def forget_attempts(stage: Folder) -> None:
    """Begin a run with none counted."""
    stage.child(_FOLDER).delete()


def _places(folder: Folder, name: str) -> list[str]:
    """Where a part was begun before; none where the note is not there or not whole."""
    if not folder.is_file(name):
        return []
    try:
        found: Any = folder.read_json(name)
    except DataError:
        return []
    return [str(place) for place in found] if isinstance(found, list) else []
