"""The watchdog of a train worker: it ends a live process that makes no progress.

It watches the worker's own record of its work (`pulse.Beat`). It writes the stacks of all threads
to a file in the stage's folder and ends the process. Ray Train counts a failure and restarts all
workers from the last checkpoint. The usual reason is a collective that waits for a rank which never
joins.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from raydpo.core.errors import said_by
from raydpo.core.progress import logger
from raydpo.core.storage import Folder

if TYPE_CHECKING:
    from raydpo.core.pulse import Beat

#: Folder inside the stage's folder.
STACKS: Final = "stacks"
#: Collectives time out this much later, so the stacks are written while they still wait.
COLLECTIVES_LATER_SECONDS: Final = 60.0


def ends_without_progress(
    folder: Folder, rank: int, progress_within_seconds: float
) -> Callable[[Beat], None]:
    """Return a check that writes a worker's stacks and ends the process once its beat stands still.

    Args:
        folder: the folder of the stage.
        rank: the rank of this process.
        progress_within_seconds: how long the process may stay at one activity.
    """

    def look(beat: Beat) -> None:
        seconds = time.monotonic() - beat.moved_at
        if seconds <= progress_within_seconds:
            return
        said = f"rank {rank} got no further for {seconds:.0f} s (at: {beat.doing})"
        try:
            name = write_stacks(folder, f"rank-{rank:05d}", said)
            logger.error("%s, and ends; the stacks of its threads: %s/%s", said, folder.uri, name)
        except OSError as error:
            logger.error("%s, and ends; its stacks cannot be written: %s", said, said_by(error))
        os._exit(1)

    return look


def write_stacks(folder: Folder, name: str, heading: str) -> str:
    """Write the stacks of this process's threads; return the file's name in the stage's folder."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "stacks")
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{heading}; process {os.getpid()}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        content = path.read_bytes()
    written = f"{STACKS}/{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.txt"
    folder.write_bytes(written, content)
    return written


def stacks_in(folder: Folder) -> list[str]:
    """Return URIs of the files with stacks in a stage's folder."""
    stacks = folder.child(STACKS)
    return [f"{stacks.uri}/{name}" for name in sorted(stacks.files())]
