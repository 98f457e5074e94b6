"""The cluster's nodes: which live, what is free on them, and how to end a process on one.

Functions take node ids as Ray gives them, and return the current state.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Final, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydpo.core.resources import Resources

#: How long the task that ends a process may take to be there.
_END_WITHIN_SECONDS: Final = 30.0


def living_nodes() -> frozenset[str]:
    """Ids of the nodes that are in the cluster now."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return frozenset(node["NodeID"] for node in nodes if node["Alive"])


def a_node_has_room(needs: Resources) -> bool:
    """Whether one node has this much free now."""
    state: Any = cast(Any, ray)._private.state  # Ray has no public function for single nodes
    alive = living_nodes()
    return any(
        _resources(free).hold(needs)
        for node, free in state.available_resources_per_node().items()
        if node in alive
    )


def places_for(needs: Resources) -> int:
    """How many of those that each need so much have a place on the nodes that live, if all were free."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return sum(_resources(node["Resources"]).places(needs) for node in nodes if node["Alive"])


def _resources(found: dict[str, float]) -> Resources:
    return Resources(found.get("CPU", 0.0), found.get("GPU", 0.0))


def here() -> NodeAffinitySchedulingStrategy:
    """Schedule an actor on this process's own node: its loss ends the run in any case."""
    # Ray may move an actor with a soft affinity to another node before it starts, and that one may go.
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def process_start(process_id: int) -> int:
    """When a process of this machine was started, in ticks since boot; 0 where nothing says so."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[19])


def end_process(node: str, process_id: int, started: int | None = None) -> bool:
    """SIGKILL a process of Ray's on a node, even if it is stopped or hangs; return if it existed.

    It is left alone where it is not a worker of Ray's any more, or was `started` at another time.
    """
    if node not in living_nodes():
        return False
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(_end_worker).options(num_cpus=0, scheduling_strategy=place)
    try:
        return bool(ray.get(task.remote(process_id, started), timeout=_END_WITHIN_SECONDS))
    except RayError:
        return False  # the node went meanwhile, or is as silent as the process


def _end_worker(process_id: int, started: int | None) -> bool:
    if started is not None and process_start(process_id) != started:
        return False
    try:
        if not Path(f"/proc/{process_id}/cmdline").read_bytes().startswith(b"ray::"):
            return False
        os.kill(process_id, signal.SIGKILL)
    except OSError:
        return False
    return True
