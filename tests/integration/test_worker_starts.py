"""Train workers that end while they find each other, or before they have a job, are replaced."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling.default import RETRYABLE_CONTROLLER_ERRORS

from raydpo.config.file import config_from_values
from raydpo.core.place import Place
from raydpo.core.storage import folder_of
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.training.rendezvous import LocalTorchConfig
from raydpo.training.stage import early_workers, train_policy
from tests.integration.drive import descendants
from tests.integration.runs import write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@ray.remote(num_cpus=0)
class Worker:
    """An actor that calls what it is given, as Ray Train's workers do."""

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


class Group:
    """What Ray Train's backends use of its groups of workers."""

    def __init__(self) -> None:
        self.actors: list[Any] = [Worker.remote(), Worker.remote()]

    def __len__(self) -> int:
        return len(self.actors)

    def execute_single_async(self, rank: int, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.actors[rank].execute.remote(function, *args, **kwargs)

    def execute_single(self, rank: int, function: Any, *args: Any, **kwargs: Any) -> Any:
        return ray.get(self.execute_single_async(rank, function, *args, **kwargs))

    def execute(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        ranks = range(len(self))
        return ray.get([self.execute_single_async(r, function, *args, **kwargs) for r in ranks])


def start(group: Group) -> None:
    config = LocalTorchConfig(backend="gloo", timeout_s=60)
    config.backend_cls().on_start(group, config)


def test_a_worker_that_ends_while_workers_find_each_other_lets_ray_train_begin_again() -> None:
    group = Group()
    group.actors[1].execute.remote(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerGroupStartupFailedError, match="a worker ended"):
        start(group)
    assert WorkerGroupStartupFailedError in RETRYABLE_CONTROLLER_ERRORS


def test_another_error_of_workers_that_live_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="train"):  # no session of Ray Train is here
        start(Group())


def test_workers_that_ended_before_their_job_are_replaced(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values: dict[str, Any] = {
        "name": "test",
        "output": str(tmp_path),
        "model": str(tiny_model),
        "preferences": write_pairs(tmp_path, 8),
        "training": {"objective": {"name": "simpo"}, "cpus_per_worker": 0.5, "max_failures": 0},
    }
    config = config_from_values(values, "test")
    preferences = run_preferences_stage(
        config, Place(folder_of(str(tmp_path / "preferences")), "test")
    )
    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)
    folder = folder_of(str(tmp_path / "policy"))
    place = Place(folder, "test")
    with early_workers(config, place) as workers:
        assert workers is not None
        deadline = time.monotonic() + 300
        while not workers.ended:
            assert time.monotonic() < deadline
            for process in descendants("RayTrainWorker.run_train_fn"):
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        train_policy(config, place, preferences, None, workers)
    assert folder.exists("manifest.json")
    assert "the workers that waited for the data have ended, and others start" in caplog.text
