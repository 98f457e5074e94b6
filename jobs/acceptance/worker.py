"""The process that runs tasks one after the other, until one fails or the parent leaves.

It reads commands from the standard input, one JSON object per line. It writes one answer per line
to the original standard output; the first says where it runs. Output of libraries goes to the
standard error, and so do the frames of a crash or of SIGUSR1.

    python -m acceptance.worker
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from .environment import facts
from .task import Context, LeftOut, Task
from .tasks import all_tasks


def main() -> None:
    """Answer commands; an exception ends the process, whose CUDA context may be broken."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tasks = {task.name: task for task in all_tasks()}
    listed = [[task.name, task.group, task.estimate_seconds] for task in tasks.values()]
    _answer(answers, {"facts": facts(), "tasks": listed})
    while line := sys.stdin.readline():
        command = json.loads(line)
        given: dict[str, Any] = command["context"]
        folder = Path(given["folder"])
        context = Context(given["device"], given["small"], given["seed"], folder)
        answer = run(tasks[command["task"]], context)
        _answer(answers, answer)
        if answer["status"] == "crashed":
            sys.exit(1)


def run(task: Task, context: Context) -> dict[str, Any]:
    """One task's result: status, values, seconds, and what went wrong."""
    started = time.perf_counter()
    try:
        values = task.run(context)
    except LeftOut as reason:
        return {"status": "left out", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the task's result)
        traceback.print_exc()
        frames = traceback.format_exc().splitlines()[-40:]
        seconds = time.perf_counter() - started
        reason = f"{type(error).__name__}: {error}"[:600]
        return {"status": "crashed", "seconds": seconds, "reason": reason, "frames": frames}
    passed = values.pop("passed", True)
    tolerance = values.pop("tolerance", None)
    return {
        "status": "passed" if passed else "failed",
        "seconds": time.perf_counter() - started,
        "tolerance": tolerance,
        "values": values,
    }


def _answer(answers: IO[str], values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
