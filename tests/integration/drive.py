"""Runs the command line in a process that kills itself, with SIGKILL, at a chosen point.

    python drive.py POINT ARGUMENTS...

POINT is `never`, `sampling` (the second part of the candidates has been written) or
`training` (the first checkpoint has been written).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path


def kill_when(exists: str, run: Path) -> None:
    """Wait in a thread until the run directory has a file of that pattern, then die."""
    tick = threading.Event()

    def watch() -> None:
        while not any(run.glob(exists)):
            tick.wait(0.002)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    point, run, *arguments = sys.argv[1:]
    if point == "sampling":
        kill_when("round-000/candidates/_parts/00001.json", Path(run))
    elif point == "training":
        kill_when("round-000/policy/checkpoints/checkpoint_*/.metadata", Path(run))
    from raydpo.cli import main

    sys.exit(main(arguments))
