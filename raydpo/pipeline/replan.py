"""Replan when nodes come or go, so that waiting workers make room for work that must run.

The module watches the engines and train workers that stay alive while other stages work. If a
cluster has become too small for all of them, train workers that wait for their data end, and start
again with it. Engines end as soon as no stage samples with them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from raydpo.config.job import Config
from raydpo.core.cluster import cluster_size
from raydpo.core.nodes import living_nodes
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger
from raydpo.core.resources import Resources
from raydpo.plan import engines_can_stay, workers_can_wait
from raydpo.sampling.pool import Engines
from raydpo.training.workers import EarlyWorkers

_SECONDS_BETWEEN_LOOKS: Final = 2.0


def with_engines(config: Config, count: int) -> Config:
    """Return the same job with this many engines, at least one."""
    engines = config.sampling.engines.model_copy(update={"count": max(1, count)})
    sampling = config.sampling.model_copy(update={"engines": engines})
    return config.model_copy(update={"sampling": sampling})


def may_start_engines(config: Config) -> Callable[[int], bool]:
    """Return a check whether a job's other stages now find room beside a number of engines."""
    return lambda count: engines_can_stay(with_engines(config, count), cluster_size())


@contextmanager
def replanning(
    config: Config, engines: Engines | None, workers: Callable[[], EarlyWorkers | None]
) -> Generator[None]:
    """Watch the cluster's nodes in a thread while the block runs.

    Args:
        config: the job.
        engines: the engines that live through its stages, if any.
        workers: returns the train workers that are waiting now.
    """
    seen, size = living_nodes(), cluster_size()

    def look() -> None:
        nonlocal seen
        now = living_nodes()
        if now != seen:
            _say_change(len(seen), len(now))
            seen = now
        if (left := cluster_size()) != size:
            _give_way(config, left, engines, workers())

    with periodically("raydpo-replanning", look, _SECONDS_BETWEEN_LOOKS):
        yield


def _say_change(before: int, now: int) -> None:
    change = "lost" if now < before else "gained"
    logger.warning(
        "[plan] the cluster has %s a node: %d node(s) with %s now", change, now, cluster_size()
    )


def _give_way(
    config: Config, size: Resources, engines: Engines | None, workers: EarlyWorkers | None
) -> None:
    living = engines.living() if engines is not None else 0
    planned = with_engines(config, living)
    if workers is not None and not workers_can_wait(planned, size) and workers.give_way():
        logger.warning("[plan] train workers give way, and start when their data are there")
    if engines is None or not living or engines_can_stay(planned, size):
        return
    if engines.give_way():
        logger.warning("[plan] engines give way where nobody samples: others need what they hold")
