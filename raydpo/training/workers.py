"""The Ray Train workers of one training: what they hold, and when they start.

What comes in: a `TrainJob`, or the promise of one. What goes out: nothing; the workers
write into the stage's folder. Starting them takes longer than a small training: processes
that import torch and transformers, and find each other. Where they find room beside the
stages before training, they start with those and wait for their data.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any, Final, cast

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydpo.cluster import uses_cuda
from raydpo.config import ModelConfig, TrainerConfig
from raydpo.environment import worker_environment
from raydpo.errors import own_errors
from raydpo.progress import logger
from raydpo.storage import Folder, locate
from raydpo.training.handover import AwaitedJob, GivenJob, Handover
from raydpo.training.ray_worker import CHECKPOINTS, TrainJob, run_worker

#: How long workers without a job may take to end.
_END_WITHIN_SECONDS: Final = 30.0


class EarlyWorkers:
    """Train workers that are started now, and wait for their job until it is given to them.

    They are those of one training: what Ray Train does about failures and checkpoints, it
    does as for workers that start with their job.

    Args:
        settings: `training` of the configuration.
        model: what they will train; its architecture's code is imported meanwhile.
        folder: of the training's stage.
        what: the stage and round, for the log.
    """

    def __init__(
        self, settings: TrainerConfig, model: ModelConfig, folder: Folder, what: str
    ) -> None:
        # Beside the driver: what takes its node away ends the run anyway.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor: Any = ray.remote(Handover).options(num_cpus=0, scheduling_strategy=here)
        self._handover = actor.remote()
        self._given = False
        awaited = AwaitedJob(model, self._handover)
        logger.info("[%s] starting %s workers, which wait for the data", what, count(settings))
        self._end = _begin(settings, folder, awaited)

    def train(self, job: TrainJob) -> None:
        """Give them their job, and wait until it is done.

        Raises:
            RaydpoError: raised in a worker, it arrives here as it was raised.
        """
        self._given = True
        reference = ray.put(job)
        try:
            ray.get(self._handover.give.remote([reference]))
            self._end.result()
        finally:
            cast(Any, ray).kill(self._handover)

    def __enter__(self) -> EarlyWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        """Without a job they end: before Ray does, which a thread of this process still asks."""
        if not self._given:
            self._handover.give.remote([])
            wait([self._end], timeout=_END_WITHIN_SECONDS)
            cast(Any, ray).kill(self._handover)


def fit(job: TrainJob) -> None:
    """Start train workers, and wait until the job is done.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    _begin(job.settings, job.folder, GivenJob(ray.put(job))).result()


def count(settings: TrainerConfig) -> str:
    """How many workers a training has, in words."""
    few, many = settings.fewest_workers, settings.most_workers
    return str(few) if few == many else f"{few} to {many}"


def _begin(settings: TrainerConfig, folder: Folder, job: GivenJob | AwaitedJob) -> Future[None]:
    """Fit in a thread: in the main one, Ray Train would take Ctrl-C from this process for good."""
    end: Future[None] = Future()

    def run() -> None:
        try:
            _fit(settings, folder, job)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            end.set_exception(error)
        else:
            end.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return end


def _fit(settings: TrainerConfig, folder: Folder, job: GivenJob | AwaitedJob) -> None:
    cuda = uses_cuda(settings.device)
    filesystem, path = locate(folder.uri)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cuda else "gloo"),
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


def _checkpoint_config(settings: TrainerConfig) -> CheckpointConfig:
    return CheckpointConfig(
        num_to_keep=settings.keep_checkpoints,
        checkpoint_score_attribute=settings.keep_best_by,
        checkpoint_score_order="min" if settings.keep_best_by == "loss" else "max",
    )


def _scaling(settings: TrainerConfig, cuda: bool) -> ScalingConfig:
    resources = {"CPU": settings.cpus_per_worker}
    if cuda:
        resources["GPU"] = settings.gpus_per_worker
    return ScalingConfig(
        num_workers=settings.num_workers,
        elastic_resize_monitor_interval_s=settings.resize_every_seconds,
        use_gpu=cuda,
        resources_per_worker=resources,
    )
