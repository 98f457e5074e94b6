"""All tasks, ordered by value, so that a short run gives the most.

The list joins those of the two groups: tasks that check numbers come before tasks that measure
speed.
"""

from __future__ import annotations

from .task import Task


def all_tasks() -> list[Task]:
    """Every task; imports are here since only the worker needs torch."""
    from .fast import FAST_TASKS
    from .right import RIGHT_TASKS

    return [*RIGHT_TASKS, *FAST_TASKS]
