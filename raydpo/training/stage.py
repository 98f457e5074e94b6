"""The training stages on Ray Train: preference groups or examples in, a model out.

What comes in: finished tables and the configuration. What goes out: `policy/` with the
model as a Hugging Face folder, metrics, checkpoints and a manifest. A killed driver's
training goes on from its last checkpoint.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from raydpo.cluster import cluster_size
from raydpo.config import Config, ModelConfig, TrainerConfig
from raydpo.config_content import content_of
from raydpo.errors import ModelError, NumericsError, RunError, said_by
from raydpo.models import tokenizer_fingerprint, weights_fingerprint
from raydpo.parts import Table
from raydpo.plan import workers_can_wait
from raydpo.progress import logger, say
from raydpo.run import Stage, commit_files, open_stage
from raydpo.storage import Folder
from raydpo.training.checkpoint_files import last_whole_step
from raydpo.training.export import ADAPTER, MODEL
from raydpo.training.metrics_log import PROGRESS_FILE, read_metrics
from raydpo.training.ray_worker import CHECKPOINTS, ERROR_FILE, EXPORT_FILE, Publish, TrainJob
from raydpo.training.workers import EarlyWorkers, count, fit

#: Errors that workers leave in a file, by name.
_RECORDED: Final = {one.__name__: one for one in (NumericsError, ModelError, RunError)}
_SECONDS_BETWEEN_LOOKS: Final = 1.0


def early_workers(
    config: Config, folder: Folder, what: str
) -> AbstractContextManager[EarlyWorkers | None]:
    """Workers for `train_policy` that start now, where they find room beside all stages before it.

    None where they do not, or where this training was begun before: it goes on as it is.

    Args:
        config: the job; its `model` is what will be trained.
        folder: of the training's stage.
        what: the stage and round, for the log.
    """
    assert config.training is not None
    if folder.files() or not workers_can_wait(config, cluster_size()):
        return nullcontext()
    return EarlyWorkers(config.training, config.model, folder, what)


def train_policy(
    *,
    config: Config,
    folder: Folder,
    preferences: Table,
    reference: Table | None,
    what: str,
    workers: EarlyWorkers | None = None,
    publish: Publish | None = None,
) -> ModelConfig:
    """Train the policy on preference groups; returns where it is.

    Args:
        config: the job.
        folder: of the stage.
        preferences: the groups.
        reference: their log-probs; None only where the objective needs none.
        what: the stage and round, for the log.
        workers: those of `early_workers`; without them workers start when there is something to do.
        publish: takes the trained model from the worker that exports it, before the stage ends.

    Raises:
        NumericsError: step 0 shows logratios, or a loss is not finite.
    """
    assert config.training is not None
    starts_at_reference = False
    if reference is not None:
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
        heldout_fraction=_heldout_fraction(config),
        starts_at_reference=starts_at_reference,
        what=what,
        publish=publish,
    )
    return _run(job, policy_stage(config, folder, preferences, reference), workers)


def policy_stage(
    config: Config, folder: Folder, preferences: Table, reference: Table | None
) -> Stage:
    """What a policy is made from that is trained on these groups."""
    assert config.training is not None
    inputs = {"preferences": preferences.fingerprint}
    if reference is not None:
        inputs["reference"] = reference.fingerprint
    return _stage(config, config.training, folder, inputs, _heldout_fraction(config))


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
    return _run(job, sft_stage(config, folder, examples))


def sft_stage(config: Config, folder: Folder, examples: Table) -> Stage:
    """What a model is made from that is fine-tuned on these examples."""
    assert config.sft is not None
    return _stage(config, config.sft, folder, {"examples": examples.fingerprint}, 0.0)


def _stage(
    config: Config,
    settings: TrainerConfig,
    folder: Folder,
    inputs: dict[str, str],
    heldout_fraction: float,
) -> Stage:
    return Stage(
        folder=folder,
        name="train",
        table=None,
        inputs={
            **inputs,
            "model": weights_fingerprint(config.model),
            "tokenizer": tokenizer_fingerprint(config.model),
        },
        settings={
            **content_of(settings),
            **content_of(config.model),
            "seed": config.seed,
            "heldout_fraction": heldout_fraction,
        },
    )


def _heldout_fraction(config: Config) -> float:
    return config.evaluation.heldout_fraction if config.evaluation else 0.0


def _run(job: TrainJob, stage: Stage, workers: EarlyWorkers | None = None) -> ModelConfig:
    # Only what changed is carried over: the trained folder brings its own tokenizer.
    trained = job.model.model_copy(update={"path": job.folder.child(MODEL).uri, "revision": None})
    if open_stage(stage, refuse_to_mend=functools.partial(_refuse_to_mend, job)) is not None:
        logger.info("[%s] nothing to do: the model is there", job.what)
        return trained
    job.folder.delete(ERROR_FILE)
    with _shown_progress(job.folder):
        _train(job, workers)
    _raise_recorded_error(job.folder)
    rows = read_metrics(job.folder)
    held = job.folder.read_json(EXPORT_FILE)
    facts = {"steps": len(rows), "last_metrics": rows[-1], "export": held}
    commit_files(stage, weights_fingerprint(trained), facts)
    text = (
        "[%s] the exported model, loaded again: %d values, largest difference %.2g (tolerance %g)"
    )
    logger.info(text, job.what, held["values"], held["largest_difference"], held["tolerance"])
    logger.info("[%s] done: %d steps, loss %.4f", job.what, len(rows), rows[-1]["loss"])
    return trained


def _refuse_to_mend(job: TrainJob, damaged: list[str], manifest: dict[str, Any]) -> str | None:
    """Why damaged files of a finished training cannot be written anew by an export alone."""
    exported = (f"{MODEL}/", f"{ADAPTER}/", EXPORT_FILE)
    trained = [name for name in damaged if not name.startswith(exported)]
    if trained:
        return f"{trained[0]} is made by the training itself"
    local = job.folder.is_local
    last = last_whole_step(job.folder.local_path(CHECKPOINTS)) if local else None
    if last != manifest["steps"]:
        return f"no whole checkpoint of its last step ({manifest['steps']}) is there to export from"
    return None


def _train(job: TrainJob, workers: EarlyWorkers | None) -> None:
    if workers is not None:
        workers.train(job)
    else:
        logger.info("[%s] starting %s workers", job.what, count(job.settings))
        fit(job)


@contextmanager
def _shown_progress(folder: Folder) -> Generator[None]:
    """Log the workers' progress lines while the block runs."""
    ended = threading.Event()

    def show() -> None:
        shown = b""
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                line = folder.read_bytes(PROGRESS_FILE) if folder.exists(PROGRESS_FILE) else shown
            except OSError as error:  # it is there again, or the training itself ends by it
                logger.warning("progress cannot be read: %s", said_by(error))
                continue
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


def _raise_recorded_error(folder: Folder) -> None:
    if folder.exists(ERROR_FILE):
        name, *words = folder.read_json(ERROR_FILE)
        raise _RECORDED[name](*words)
