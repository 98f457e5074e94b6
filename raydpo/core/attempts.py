"""Count how often workers start a part, so that its stage can give up on it.

A worker that starts a part leaves a note in the stage's folder and removes it when it has made
the part. Ray restarts a part without limit whenever its process or node is lost. Without the
count nobody would learn of a part that ends its process itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from raydpo.core.errors import ClusterError, DataError, note_place
from raydpo.core.storage import Folder

_FOLDER: Final = "_attempts"
#: Nodes may be lost meanwhile, too: more than one is no sign of anything.
MOST_ATTEMPTS: Final = 5


@contextmanager
def attempted(stage: Folder, part: str, what: str) -> Generator[None]:
    """Count an attempt at a part; an exception in the block ends the run and clears the count.

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
            "or a crash in native code. Smaller batches need less memory, and so do smaller parts "
            "(rows_per_part) in a run of another `name`: a run that has begun keeps its parts",
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
    """Forget all counts when a run begins."""
    stage.child(_FOLDER).delete()


def _places(folder: Folder, name: str) -> list[str]:
    """Where earlier attempts at a part ran; empty if the note is missing or incomplete."""
    if not folder.is_file(name):
        return []
    try:
        found: Any = folder.read_json(name)
    except DataError:
        return []
    return [str(place) for place in found] if isinstance(found, list) else []
