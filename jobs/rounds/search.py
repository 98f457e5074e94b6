"""The short search for the usual loop's best settings, on one round of few prompts.

Each process of a round is timed with one change after the other; a change stays if it was faster.
What decides is the whole process where the change is one of its start, and its work elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmark.kept import Kept

from . import theirs
from .loop import PROCESSES, output, step_command
from .measuring import run
from .setting import Setting, Tuning

#: What is tried, in this order, for each process of a round.
CHANGES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "sampling": ({}, {"eager": False}),
    "rewards and pairs": ({}, {"reward_batch": 8}),
    "training": (
        {},
        {"malloc": False},
        {"training_threads": 1},
        {"batch_pairs": 16},
        {"batch_pairs": 40},
        {"bfloat16": True},
    ),
}

#: Prompts of a trial.
_PROMPTS: Final = 64


@dataclass(frozen=True)
class Trial:
    """One process with one change.

    Attributes:
        process: of a round.
        change: to the best settings so far.
        seconds: the whole process for sampling, and its work alone for the others.
        kept: whether the change stayed.
    """

    process: str
    change: dict[str, Any]
    seconds: float
    kept: bool


def trial_name(process: str, change: dict[str, Any]) -> str:
    """The name of a trial among the kept results."""
    return f"search: {process} {change or 'as it begins'}"


def best(kept: Kept) -> tuple[Tuning, list[Trial], bool]:
    """What the trials so far say: the best settings, all trials, whether none is missing."""
    tuning, trials = Tuning(), list[Trial]()
    for process, changes in CHANGES.items():
        fastest: float | None = None
        for change in changes:
            result = kept.results.get(trial_name(process, change))
            if result is None:
                return tuning, trials, False
            better = fastest is None or result["seconds"] < fastest
            trials.append(Trial(process, change, result["seconds"], better))
            if better:
                fastest, tuning = result["seconds"], replace(tuning, **change)
    return tuning, trials, True


def search(
    setting: Setting, root: Path, folder: Path, kept: Kept, late: Callable[[], bool]
) -> None:
    """Make the trials that are missing, until it is too late for another.

    Args:
        setting: the work; one round of it is done.
        root: of the repository.
        folder: for what the processes write.
        kept: the results so far.
        late: whether no further trial may begin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    setting = replace(setting, rounds=1, epochs=1, prompts_per_round=_PROMPTS)
    theirs.write_prompts(setting, folder, root)
    total = sum(map(len, CHANGES.values()))
    while not (found := best(kept))[2] and not late():
        tuning, trials, _ = found
        process, change = missing(len(trials))
        command, environment = step_command(
            process, setting, replace(tuning, **change), root, folder, 0, root / setting.model
        )
        written = output(process, folder, 0)
        if change:  # what later trials read is made by the settings that the search begins with
            trial = folder / f"trial{written.suffix}"
            command = [str(trial) if part == str(written) else part for part in command]
            written = trial
        started = time.perf_counter()
        timed = run(command, folder / "log.txt", root, environment)
        spent = timed.seconds
        if process != "sampling":
            work = json.loads(written.with_suffix(".seconds.json").read_text(encoding="utf-8"))
            spent = sum(work.values())
        result = {"seconds": spent, "whole_seconds": timed.seconds, "noise": timed.noise}
        kept.add(trial_name(process, change), result)
        took = time.perf_counter() - started
        print(
            f"[search {len(trials) + 1}/{total}] {process} {change}: {spent:.1f} s, whole {took:.1f} s",
            flush=True,
        )


def missing(done: int) -> tuple[str, dict[str, Any]]:
    """The trial after so many, as a process and its change."""
    flat = [(process, change) for process in PROCESSES for change in CHANGES[process]]
    return flat[done]
