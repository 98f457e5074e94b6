"""What one task of the acceptance run is, and what it gets.

Tasks, worker and command share these descriptions. A task returns plain values. The command
interprets two of them, `passed` (a bool, true if absent) and `tolerance`, and shows everything
else as a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

#: Values of one task, as JSON takes them.
Values = dict[str, Any]


class LeftOut(Exception):
    """A task cannot run here; the text says why."""


@dataclass(frozen=True)
class Context:
    """Where a task runs.

    Attributes:
        device: `cpu` or `cuda`.
        small: shapes that a CPU takes in seconds.
        seed: of weights, tokens and lengths.
        folder: an empty scratch folder of the worker process.
    """

    device: str
    small: bool
    seed: int
    folder: Path


@dataclass(frozen=True)
class Task:
    """One measurement or comparison.

    Attributes:
        name: by which `--only` and `--again` find it.
        group: `right` compares numbers, `fast` measures time and memory.
        estimate_seconds: on a GPU; no task is begun that does not fit into what is left.
        run: does it; an exception is a crash, `LeftOut` says that it cannot run here.
    """

    name: str
    group: Literal["right", "fast"]
    estimate_seconds: float
    run: Callable[[Context], Values]
