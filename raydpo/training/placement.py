"""Give back the places of train workers that did not start.

Ray Train reserves the CPUs and GPUs of its workers in a placement group. Where a worker dies while
the workers start, or where their controller is ended, Ray Train leaves the group behind. It then
holds its CPUs and GPUs as long as the driver lives, and the workers that start next wait for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import RunningState, SchedulingState
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

_REMOVED: Final = "REMOVED"


class PlacedTrainer(TorchTrainer):
    """Ray Train's trainer, whose workers leave no placement group when they fail to start."""

    def _create_default_callbacks(self) -> list[Any]:
        # First of all, since those that come later are what may fail.
        return [_FailedStarts(), *super()._create_default_callbacks()]


class _FailedStarts(ControllerCallback, WorkerGroupCallback):
    """Runs in the controller, and removes the placement group of workers that failed to start."""

    def __init__(self) -> None:
        self._place: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember the placement group of workers that exist, and are still to be set up."""
        self._place = worker_group.get_worker_group_state().placement_group_handle

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Remove the group if the workers do not run after their start."""
        if not isinstance(previous_state, SchedulingState):
            return
        if self._place is not None and not isinstance(current_state, RunningState):
            self._place.shutdown()
        self._place = None


def placement_groups() -> set[str]:
    """Return the ids of the placement groups that this driver and its actors have now."""
    return set(_own())


def remove_placement_groups(but: set[str], of_worker: Mapping[str, float]) -> None:
    """Remove this driver's placement groups of train workers.

    Args:
        but: ids of those that stay.
        of_worker: what each worker holds; groups of others stay, too.
    """
    for group, of in _own().items():
        if group not in but and all(one == dict(of_worker) for one in of["bundles"].values()):
            group_id = cast(Any, ray).PlacementGroupID(bytes.fromhex(group))
            remove_placement_group(PlacementGroup(group_id))


def _own() -> dict[str, dict[str, Any]]:
    """Return what Ray knows of these groups, by id; Ray ends an id with that of its job."""
    job = str(ray.get_runtime_context().get_job_id())
    table: dict[str, dict[str, Any]] = cast(Any, placement_group_table)()
    return {g: of for g, of in table.items() if g.endswith(job) and of["state"] != _REMOVED}
