"""The training stages on Ray Train: preference groups or examples in, a model out.

What comes in: finished tables and the configuration. What goes out: `policy/` with the
model as a Hugging Face folder, metrics, checkpoints and a manifest. A killed driver's
training goes on from its last checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raydpo.cluster import uses_cuda
from raydpo.config import Config, ModelConfig, TrainerConfig
from raydpo.environment import worker_environment
from raydpo.errors import NumericsError
from raydpo.models import tokenizer_fingerprint, weights_fingerprint, with_absolute_path
from raydpo.parts import Table, own_errors
from raydpo.progress import logger, say
from raydpo.run import Stage, commit_files, open_stage
from raydpo.storage import Folder, locate
from raydpo.training.metrics_log import PROGRESS_FILE, read_metrics
from raydpo.training.ray_worker import CHECKPOINTS, ERROR_FILE, MODEL, TrainJob, run_worker

#: Settings that change how the work is done, not what comes out (but for rounding).
_NOT_CONTENT: Final = {
    "strategy",
    "num_workers",
    "replicas",
    "reshard_after_forward",
    "cpu_offload",
    "compile",
    "device",
    "cpus_per_worker",
    "max_tokens_per_micro_batch",
    "activation_checkpointing",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "keep_best_by",
    "background_checkpoints",
    "max_failures",
    "log_every_steps",
    "trackers",
    "step_zero_tolerance",
}
_SECONDS_BETWEEN_LOOKS: Final = 1.0


def train_policy(
    *, config: Config, folder: Folder, preferences: Table, reference: Table | None, what: str
) -> ModelConfig:
    """Train the policy on preference groups; returns where it is.

    Without a `reference` table the objective must be one that needs none.

    Raises:
        NumericsError: step 0 shows logratios, or a loss is not finite.
    """
    assert config.training is not None
    heldout = config.evaluation.heldout_fraction if config.evaluation else 0.0
    inputs = {"preferences": preferences.fingerprint}
    starts_at_reference = False
    if reference is not None:
        inputs["reference"] = reference.fingerprint
        weights = reference.manifest["inputs"]["model"]
        starts_at_reference = weights == weights_fingerprint(config.model)
    uses_live = config.training.objective.uses_live_reference
    live = config.reference.model or config.model if uses_live else None
    job = TrainJob(
        model=config.model,
        settings=config.training,
        table=preferences,
        reference=reference,
        reference_model=live,
        folder=folder,
        seed=config.seed,
        heldout_fraction=heldout,
        starts_at_reference=starts_at_reference,
        what=what,
    )
    return _run(job, inputs)


def train_sft(*, config: Config, folder: Folder, examples: Table, what: str) -> ModelConfig:
    """Supervised fine-tuning on examples; returns where the model is.

    Raises:
        NumericsError: a loss is not finite.
    """
    assert config.sft is not None
    job = TrainJob(
        model=config.model,
        settings=config.sft,
        table=examples,
        reference=None,
        reference_model=None,
        folder=folder,
        seed=config.seed,
        heldout_fraction=0.0,
        starts_at_reference=False,
        what=what,
    )
    return _run(job, {"examples": examples.fingerprint})


def _run(job: TrainJob, inputs: dict[str, str]) -> ModelConfig:
    stage = Stage(
        folder=job.folder,
        name="train",
        table=None,
        inputs={
            **inputs,
            "model": weights_fingerprint(job.model),
            "tokenizer": tokenizer_fingerprint(job.model),
        },
        settings={
            **job.settings.model_dump(mode="json", exclude=set(_NOT_CONTENT)),
            "precision": job.model.precision,
            "attention": job.model.attention,
            "layout": job.model.layout,
            "seed": job.seed,
            "heldout_fraction": job.heldout_fraction,
        },
    )
    # Only what changed is carried over: the trained folder brings its own tokenizer.
    trained = job.model.model_copy(update={"path": job.folder.child(MODEL).uri, "revision": None})
    if open_stage(stage) is not None:
        logger.info("[%s] nothing to do: the model is there", job.what)
        return trained
    job.folder.delete(ERROR_FILE)
    logger.info("[%s] starting %s workers", job.what, _workers(job.settings))
    with _shown_progress(job.folder):
        # Ray Train's workers each work in a folder of their own.
        live = job.reference_model and with_absolute_path(job.reference_model)
        _fit(replace(job, model=with_absolute_path(job.model), reference_model=live))
    _raise_recorded_error(job.folder)
    rows = read_metrics(job.folder)
    commit_files(
        stage, weights_fingerprint(trained), {"steps": len(rows), "last_metrics": rows[-1]}
    )
    logger.info("[%s] done: %d steps, loss %.4f", job.what, len(rows), rows[-1]["loss"])
    return trained


def _fit(job: TrainJob) -> None:
    cuda = uses_cuda(job.settings.device)
    filesystem, path = locate(job.folder.uri)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cuda else "gloo"),
        scaling_config=_scaling(job.settings, cuda),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=job.settings.max_failures),
            checkpoint_config=_checkpoint_config(job.settings),
            worker_runtime_env={
                "env_vars": dict(worker_environment(cuda, job.settings.cpus_per_worker))
            },
        ),
    )
    with own_errors():
        trainer.fit()


@contextmanager
def _shown_progress(folder: Folder) -> Generator[None]:
    """Log the workers' progress lines while the block runs."""
    ended = threading.Event()

    def show() -> None:
        shown = b""
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            line = folder.read_bytes(PROGRESS_FILE) if folder.exists(PROGRESS_FILE) else shown
            if line != shown:
                say(line.decode())
                shown = line

    folder.delete(PROGRESS_FILE)
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        folder.delete(PROGRESS_FILE)


def _checkpoint_config(settings: TrainerConfig) -> CheckpointConfig:
    return CheckpointConfig(
        num_to_keep=settings.keep_checkpoints,
        checkpoint_score_attribute=settings.keep_best_by,
        checkpoint_score_order="min" if settings.keep_best_by == "loss" else "max",
    )


def _workers(settings: TrainerConfig) -> str:
    few, many = settings.fewest_workers, settings.most_workers
    return str(few) if few == many else f"{few} to {many}"


def _scaling(settings: TrainerConfig, cuda: bool) -> ScalingConfig:
    return ScalingConfig(
        num_workers=settings.num_workers,
        use_gpu=cuda,
        resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if cuda else {})},
    )


def _raise_recorded_error(folder: Folder) -> None:
    if folder.exists(ERROR_FILE):
        value, rule, way_out = folder.read_json(ERROR_FILE)
        raise NumericsError(value, rule, way_out)
