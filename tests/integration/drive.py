"""Run the command line in a process, and kill something with SIGKILL at a chosen point.

    python drive.py POINT RUN ARGUMENTS...

POINT is one of these:

- `never`;
- `sampling`: the process itself, after it has written the second part of the candidates;
- `judging`: the process itself, after a judge's sixtieth answer;
- `training`: the process itself, at the first checkpoint;
- `checkpoints`: the process itself, at the second checkpoint;
- `round-1`, of online rounds: an engine in the middle of sampling, a train worker at the first
  checkpoint, and the process itself at the next.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import psutil

_CHECKPOINTS = "policy/checkpoints/checkpoint_*/checkpoint.json"
#: What is killed, and the files in the run directory whose appearance, so many of them, is the moment.
KILLS: dict[str, list[tuple[str, str, int]]] = {
    "never": [],
    "sampling": [("itself", "round-000/candidates/_parts/00001.json", 1)],
    "judging": [("itself", "judge-answers/answers/*/*.json", 60)],
    "training": [("itself", "round-000/policy/checkpoints/checkpoint_*/.metadata", 1)],
    "checkpoints": [("itself", f"round-000/{_CHECKPOINTS}", 2)],
    "round-1": [
        ("ray::Engine", "round-001/candidates/_parts/00000.json", 1),
        ("RayTrainWorker", f"round-001/{_CHECKPOINTS}", 1),
        ("itself", f"round-001/{_CHECKPOINTS}", 1),
    ],
}


def kill_in_turn(kills: list[tuple[str, str, int]], run: Path) -> None:
    """Wait in a thread for each moment in turn, and kill what belongs to it.

    Files that stood there at an earlier kill are not counted again.
    """
    tick = threading.Event()

    def watch() -> None:
        seen: set[Path] = set()
        for victim, pattern, count in kills:
            while len(set(run.glob(pattern)) - seen) < count:
                tick.wait(0.002)
            seen |= set(run.glob(pattern))
            kill(victim, tick)

    threading.Thread(target=watch, daemon=True).start()


def kill(victim: str, tick: threading.Event) -> None:
    """Kill one process of this run: itself, or a worker by its title."""
    if victim == "itself":
        os.kill(os.getpid(), signal.SIGKILL)
    while not (found := descendants(victim)):
        tick.wait(0.01)
    found[0].kill()
    print(f"killed {victim}", file=sys.stderr, flush=True)


def descendants(title: str) -> list[psutil.Process]:
    """Processes below this one whose command line has the title."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


if __name__ == "__main__":
    point, run, *arguments = sys.argv[1:]
    kill_in_turn(KILLS[point], Path(run))
    from raydpo.cli import main

    sys.exit(main(arguments))
