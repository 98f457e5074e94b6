"""The Ray Train workers of one training: their resources, and when they start.

They get a `TrainJob`, or the promise of one, and write into the stage's folder. Starting them
takes longer than a small training: their processes import torch and transformers, and find each
other. If they fit beside the stages before training, they start with those and wait for their
data.
"""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import Future, wait
from typing import Any, Final, cast

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from raydpo.config.job import ModelConfig, TrainerConfig
from raydpo.core.cluster import uses_cuda
from raydpo.core.environment import worker_environment
from raydpo.core.errors import own_errors, said_by
from raydpo.core.nodes import end_process, here
from raydpo.core.progress import logger
from raydpo.core.storage import Folder, locate
from raydpo.core.waiting import holding
from raydpo.training.handover import AwaitedJob, GivenJob, Handover
from raydpo.training.heldout import CHECKPOINT_RANK
from raydpo.training.placement import PlacedTrainer, placement_groups, remove_placement_groups
from raydpo.training.ray_worker import CHECKPOINTS, TrainJob, run_worker
from raydpo.training.rendezvous import LocalTorchConfig
from raydpo.training.watchdog import COLLECTIVES_LATER_SECONDS

#: Ray Train's timeout variable, in seconds. The driver, which ends a single process, acts first.
_ANSWER_TO_RAY_TRAIN: Final = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_RAY_TRAIN_LATER_SECONDS: Final = 30.0
#: How long workers without a job may take to end when the run ends or others need their room.
_END_WITHIN_SECONDS: Final = 30.0
_GIVE_WAY_WITHIN_SECONDS: Final = 5.0


class EarlyWorkers:
    """Train workers that start now and wait until they are given their job.

    They belong to one training. Ray Train handles failures and checkpoints as for workers that
    start with their job.

    Args:
        settings: the section `training` of the configuration.
        model: the model to train; its architecture's code is imported while the workers wait.
        folder: the folder of the training's stage.
        what: the stage and round, for the log.
    """

    def __init__(
        self, settings: TrainerConfig, model: ModelConfig, folder: Folder, what: str
    ) -> None:
        # The actor runs beside the driver: losing that node ends the run anyway.
        actor: Any = ray.remote(Handover).options(num_cpus=0, scheduling_strategy=here())
        self._handover = actor.remote()
        self._lock = threading.Lock()
        self._what = what
        self._given = False
        self._ended = False
        self._controllers = _controllers()
        self._placement_groups = placement_groups()
        self._of_worker = _resources(settings, uses_cuda(settings.device))
        awaited = AwaitedJob(model, self._handover)
        logger.info("[%s] starting %s workers, which wait for the data", what, count(settings))
        self._end = _begin(settings, folder, awaited)

    @property
    def ended(self) -> bool:
        """Whether all workers have ended, with or without a job."""
        return self._end.done()

    def train(self, job: TrainJob) -> None:
        """Give the workers their job, and wait until it is done.

        If they gave way, or failures ended them before they had a job, others start for it.

        Raises:
            RaydpoError: an error of a worker, which arrives here as it was raised.
        """
        with self._lock:
            error = self._end.exception() if not self._ended and self.ended else None
            self._ended = self._ended or error is not None
            self._given = not self._ended
        if error is not None:
            text = "[%s] the workers that waited for the data have ended, and others start: %s"
            logger.warning(text, self._what, said_by(error))
            cast(Any, ray).kill(self._handover)
        if not self._given:
            fit(job)
            return
        reference = ray.put(job)
        try:
            ray.get(self._handover.give.remote([reference]))
            self._end.result()
        finally:
            cast(Any, ray).kill(self._handover)

    def give_way(self) -> bool:
        """End and free resources if there is no job yet; return whether this happened now."""
        with self._lock:
            if self._given or self._ended:
                return False
            self._ended = True
        self._let_go(_GIVE_WAY_WITHIN_SECONDS)
        return True

    def __enter__(self) -> EarlyWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        """End workers without a job before Ray ends; a thread of this process still asks Ray."""
        with self._lock:
            over, self._ended = self._given or self._ended, True
        if not over:
            self._let_go(_END_WITHIN_SECONDS)

    def _let_go(self, seconds: float) -> None:
        """Say that no job comes. Workers that have no place yet cannot hear this. Their controller
        would request one forever, so it is ended.
        """
        self._handover.give.remote([])
        if not wait([self._end], timeout=seconds).done:
            for node, process in _controllers() - self._controllers:
                end_process(node, process)
            wait([self._end], timeout=seconds)
            remove_placement_groups(self._placement_groups, self._of_worker)
        cast(Any, ray).kill(self._handover)


def _controllers() -> set[tuple[str, int]]:
    """Return nodes and process ids of the Ray Train controllers that this driver has started."""
    own = ray.get_runtime_context().get_job_id()
    actors: dict[str, dict[str, Any]] = cast(Any, ray)._private.state.actors()
    return {
        (actor["Address"]["NodeID"], actor["Pid"])
        for actor in actors.values()
        if actor["JobID"] == own
        and actor["State"] == "ALIVE"
        and actor["ActorClassName"].endswith("TrainController")
    }


def fit(job: TrainJob) -> None:
    """Start train workers, and wait until the job is done.

    Raises:
        RaydpoError: an error of a worker, which arrives here as it was raised.
    """
    _begin(job.settings, job.folder, GivenJob(ray.put(job))).result()


def count(settings: TrainerConfig) -> str:
    """Return how many workers a training has, in words."""
    few, many = settings.fewest_workers, settings.most_workers
    return str(few) if few == many else f"{few} to {many}"


def as_holder(settings: TrainerConfig) -> str:
    """Return the name of a training's workers in log lines about waiting."""
    return f"{count(settings)} train worker(s)"


def _begin(settings: TrainerConfig, folder: Folder, job: GivenJob | AwaitedJob) -> Future[None]:
    """Fit in a thread; in the main one, Ray Train would take Ctrl-C from this process for good."""
    end: Future[None] = Future()

    def run() -> None:
        try:
            with holding(as_holder(settings)):
                _fit(settings, folder, job)
        except BaseException as error:  # noqa: BLE001 - the waiting code raises it again
            end.set_exception(error)
        else:
            end.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return end


def _fit(settings: TrainerConfig, folder: Folder, job: GivenJob | AwaitedJob) -> None:
    cuda = uses_cuda(settings.device)
    _let_ray_train_ask(settings)
    filesystem, path = locate(folder.uri)
    trainer = PlacedTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=LocalTorchConfig(
            backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout_s=math.ceil(settings.progress_within_seconds + COLLECTIVES_LATER_SECONDS),
        ),
        scaling_config=_scaling(settings, cuda),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=_checkpoint_config(settings),
            worker_runtime_env={
                "env_vars": dict(worker_environment(cuda, settings.cpus_per_worker))
            },
        ),
    )
    with own_errors():
        trainer.fit()


def _let_ray_train_ask(settings: TrainerConfig) -> None:
    """Let Ray Train wait longer for its workers, including those that wait for data. By default it
    gives them ten minutes; its controller takes this value from the driver's environment.
    """
    seconds = str(settings.answer_within_seconds + _RAY_TRAIN_LATER_SECONDS)
    before = os.environ.get(_ANSWER_TO_RAY_TRAIN)
    if before not in (None, seconds):
        text = "%s is %s from now on, not %s: training.answer_within_seconds and half a minute"
        logger.info(text, _ANSWER_TO_RAY_TRAIN, seconds, before)
    os.environ[_ANSWER_TO_RAY_TRAIN] = seconds


def _checkpoint_config(settings: TrainerConfig) -> CheckpointConfig:
    if settings.early_stopping is not None:
        return CheckpointConfig(
            num_to_keep=settings.keep_checkpoints,
            checkpoint_score_attribute=CHECKPOINT_RANK,
            checkpoint_score_order="max",
        )
    return CheckpointConfig(
        num_to_keep=settings.keep_checkpoints,
        checkpoint_score_attribute=settings.keep_best_by,
        checkpoint_score_order="min" if settings.keep_best_by == "loss" else "max",
    )


def _scaling(settings: TrainerConfig, cuda: bool) -> ScalingConfig:
    return ScalingConfig(
        num_workers=settings.num_workers,
        elastic_resize_monitor_interval_s=settings.resize_every_seconds,
        use_gpu=cuda,
        resources_per_worker=_resources(settings, cuda),
    )


def _resources(settings: TrainerConfig, cuda: bool) -> dict[str, float]:
    """Return what Ray holds for each worker."""
    gpus = {"GPU": float(settings.gpus_per_worker)} if cuda else {}
    return {"CPU": float(settings.cpus_per_worker), **gpus}
