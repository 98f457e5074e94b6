"""Run one function in its own task on the cluster, watched like the workers of a stage.

The caller names what the task's process holds, and gets the function's result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray

from raydpo.core.errors import own_errors
from raydpo.core.parts import Workers, obstacle_of
from raydpo.core.pulse import Watched, beating, watching
from raydpo.core.storage import Folder
from raydpo.core.waiting import waiting

T = TypeVar("T")


def run_task(
    function: Callable[..., T],
    *arguments: Any,
    worker: Workers,
    folder: Folder,
    what: str,
    makes: str,
) -> T:
    """Call a function in a Ray task. A process that hangs is ended, and the task begun again.

    Args:
        function: of a module; what it raises arrives here as it was raised.
        arguments: its positional arguments.
        worker: what the task's process holds.
        folder: of the stage, where the process shows that it lives.
        what: the stage and round, for the log.
        makes: what the function makes, in words.
    """
    watched = Watched(folder, what, worker.answer_within_seconds, worker.answer_setting)
    with (
        own_errors(),
        watching([watched]) as watch,
        waiting(what, lambda: obstacle_of(watch, makes, [worker])),
    ):
        task: Any = ray.remote(_beating).options(**worker.resources())
        limit = worker.answer_within_seconds
        return ray.get(task.remote(folder, makes, limit, function, arguments))


def _beating(
    folder: Folder,
    makes: str,
    answer_within_seconds: float,
    function: Callable[..., T],
    arguments: tuple[Any, ...],
) -> T:
    with beating(folder, "task", makes, answer_within_seconds):
        return function(*arguments)
