"""Runs the command line in a process that kills itself, with SIGKILL, at a chosen point.

    python drive.py POINT ARGUMENTS...

POINT is `never`, `sampling` (the second part of the candidates has been written),
`training` (the first checkpoint has been written) or `checkpoints` (two of them have been).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path


def kill_when(exists: str, run: Path, count: int = 1) -> None:
    """Wait in a thread until the run directory has `count` files of that pattern, then die."""
    tick = threading.Event()

    def watch() -> None:
        while len(list(run.glob(exists))) < count:
            tick.wait(0.002)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    point, run, *arguments = sys.argv[1:]
    if point == "sampling":
        kill_when("round-000/candidates/_parts/00001.json", Path(run))
    elif point == "training":
        kill_when("round-000/policy/checkpoints/checkpoint_*/.metadata", Path(run))
    elif point == "checkpoints":
        pattern = "round-000/policy/checkpoints/checkpoint_*/checkpoint.json"
        kill_when(pattern, Path(run), count=2)
    from raydpo.cli import main

    sys.exit(main(arguments))
