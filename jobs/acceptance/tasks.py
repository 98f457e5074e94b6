"""All tasks in the order of their worth, so that a short run gives the most.

What comes in: the two groups' own lists, each in its order. What goes out: one list. Whether
the numbers are right comes before how fast they are made.
"""

from __future__ import annotations

from .task import Task


def all_tasks() -> list[Task]:
    """Every task; imports are here since only the worker needs torch."""
    from .fast import FAST_TASKS
    from .right import RIGHT_TASKS

    return [*RIGHT_TASKS, *FAST_TASKS]
