"""Train workers that end while they find each other, or before they have a job, are replaced."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling.default import RETRYABLE_CONTROLLER_ERRORS
from ray.util import placement_group_table

from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.storage import folder_of
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.training.rendezvous import LocalTorchConfig
from raydpo.training.stage import early_workers, train_policy
from raydpo.training.workers import EarlyWorkers
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


def config_and_preferences(model: Path, folder: Path, **training: float) -> tuple[Config, Table]:
    values: dict[str, Any] = {
        "name": "test",
        "output": str(folder),
        "model": str(model),
        "preferences": write_pairs(folder, 8),
        "training": {"objective": {"name": "simpo"}, "cpus_per_worker": 0.5, **training},
    }
    config = config_from_values(values, "test")
    place = Place(folder_of(str(folder / "preferences")), "test")
    return config, run_preferences_stage(config, place)


def test_workers_that_ended_before_their_job_are_replaced(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, preferences = config_and_preferences(tiny_model, tmp_path, max_failures=0)
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


def test_a_worker_that_dies_while_it_starts_leaves_its_cpus_to_the_next(
    tiny_model: Path, tmp_path: Path
) -> None:
    """With a worker on all CPUs, whatever the first one leaves reserved keeps the next one out."""
    all_cpus = ray.cluster_resources()["CPU"]
    config, preferences = config_and_preferences(
        tiny_model, tmp_path, max_failures=1, cpus_per_worker=all_cpus
    )
    killed: list[int] = []

    def kill_the_first() -> None:
        while not (found := descendants("RayTrainWorker")):
            time.sleep(0.01)
        os.kill(found[0].pid, signal.SIGKILL)
        killed.append(found[0].pid)

    thread = threading.Thread(target=kill_the_first, daemon=True)
    thread.start()
    folder = folder_of(str(tmp_path / "policy"))
    train_policy(config, Place(folder, "test"), preferences, None)
    assert killed
    assert folder.exists("manifest.json")


def test_workers_without_a_place_that_give_way_take_none_later(
    tiny_model: Path, tmp_path: Path
) -> None:
    all_cpus = ray.cluster_resources()["CPU"]
    holder = Worker.options(num_cpus=all_cpus).remote()
    ray.get(holder.execute.remote(os.getpid))
    config, _ = config_and_preferences(tiny_model, tmp_path)
    assert config.training is not None
    folder = folder_of(str(tmp_path / "policy"))
    with EarlyWorkers(config.training, config.model, folder, "test") as workers:
        waits_until(lambda: "PENDING" in states_of_placement_groups())
        assert workers.give_way()
    ray.kill(holder)
    assert set(states_of_placement_groups()) <= {"REMOVED"}
    waits_until(lambda: ray.available_resources().get("CPU", 0) == all_cpus)


def states_of_placement_groups() -> list[str]:
    return [group["state"] for group in placement_group_table().values()]


def waits_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
