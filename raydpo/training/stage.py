"""The training stages on Ray Train: train a model on preference groups or examples.

Finished tables and the configuration give `policy/`, with the model as a Hugging Face folder,
metrics, checkpoints and a manifest. If the driver is killed, the next run resumes the training from
the last checkpoint. Rank 0 writes metrics.jsonl; the driver calls the callbacks once for each of
its rows, even if the driver is killed and started again.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from raydpo.config.content import content_of
from raydpo.config.job import Config, ModelConfig, TrainerConfig, TrainingConfig
from raydpo.config.objectives import RewardModelObjective, own_objectives
from raydpo.core import waiting as waits
from raydpo.core.callbacks import has_callbacks, notify
from raydpo.core.cluster import cluster_size
from raydpo.core.errors import (
    ClusterError,
    ModelError,
    NumericsError,
    RunError,
    own_error,
    said_by,
)
from raydpo.core.metric_names import heldout_values
from raydpo.core.own_code import function_hashes
from raydpo.core.own_functions import search_path
from raydpo.core.parts import Table
from raydpo.core.periodic import periodically
from raydpo.core.place import Place
from raydpo.core.progress import logger, say
from raydpo.core.pulse import Watch, Watched, watching
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import Folder
from raydpo.core.waiting import Obstacle, holders, waiting
from raydpo.models.loading import tokenizer_fingerprint, weights_fingerprint
from raydpo.plan import workers_can_wait
from raydpo.training.checkpoint_files import last_whole_step
from raydpo.training.export import ADAPTER, MODEL
from raydpo.training.heldout_files import BEFORE_FILE, EXPORTED_FILE, Measured, read_evaluation
from raydpo.training.metrics_log import METRICS_FILE, PROGRESS_FILE, read_metrics, read_rows
from raydpo.training.ray_worker import (
    CHECKPOINTS,
    ERROR_FILE,
    EXPORT_FILE,
    CheckRatios,
    Publish,
    TrainJob,
)
from raydpo.training.watchdog import stacks_in
from raydpo.training.workers import EarlyWorkers, as_holder, count, fit

#: Errors that workers leave in a file, by name.
_RECORDED: Final = {one.__name__: one for one in (NumericsError, ModelError, RunError)}
_SECONDS_BETWEEN_LOOKS: Final = 1.0
#: Held-out metrics that the log shows.
_SHOWN: Final = ("loss", "perplexity", "rewards/accuracies", "rewards/margins")


def early_workers(config: Config, place: Place) -> AbstractContextManager[EarlyWorkers | None]:
    """Start workers for `train_policy` now if they find room beside all the stages before it.

    Return None if they do not, or if this training was begun before and will go on as it is.

    Args:
        config: the job; its `model` is what will be trained.
        place: of the training's stage.
    """
    assert config.training is not None
    if place.folder.files() or not workers_can_wait(config, cluster_size()):
        return nullcontext()
    return EarlyWorkers(config.training, config.model, place.folder, place.label)


def train_policy(
    config: Config,
    place: Place,
    preferences: Table,
    reference: Table | None,
    workers: EarlyWorkers | None = None,
    publish: Publish | None = None,
    check_ratios: CheckRatios | None = None,
) -> ModelConfig:
    """Train the policy on preference groups, and return its location.

    Args:
        config: the job.
        place: where the policy goes.
        preferences: the preference groups.
        reference: their log-probs; None only if the objective needs none.
        workers: those of `early_workers`; without them, workers start once there is something to
            do.
        publish: takes the trained model from the worker that exports it, before the stage ends.
        check_ratios: refuses log-probs of the sampler that differ from the policy's at step 0.

    Raises:
        NumericsError: step 0 shows nonzero logratios, or a loss is not finite.
    """
    assert config.training is not None
    starts_at_reference = False
    if reference is not None:
        weights = reference.manifest["inputs"]["model"]
        starts_at_reference = weights == weights_fingerprint(config.model)
    uses_live = config.training.objective.uses_live_reference
    live = config.reference_model if uses_live else None
    job = TrainJob(
        model=config.model,
        settings=config.training,
        table=preferences,
        reference=reference,
        reference_model=live,
        folder=place.folder,
        seed=place.seed,
        heldout_fraction=config.heldout_fraction,
        starts_at_reference=starts_at_reference,
        what=place.label,
        search=search_path(),
        publish=publish,
        check_ratios=check_ratios,
    )
    return _run(job, policy_stage(config, place, preferences, reference), workers)


def policy_stage(
    config: Config, place: Place, preferences: Table, reference: Table | None
) -> Stage:
    """Describe what a policy that is trained on these groups is made from."""
    assert config.training is not None
    inputs = {"preferences": preferences.fingerprint}
    if reference is not None:
        inputs["reference"] = reference.fingerprint
    for section in own_objectives(config.training.objective):
        inputs |= {f"objective, {k}": v for k, v in function_hashes(section.function).items()}
    return _stage(config, config.training, place, inputs, config.heldout_fraction)


def train_sft(config: Config, place: Place, examples: Table) -> ModelConfig:
    """Fine-tune on examples with supervision, and return the model's location.

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
        folder=place.folder,
        seed=place.seed,
        heldout_fraction=config.sft.heldout_fraction or 0.0,
        starts_at_reference=False,
        what=place.label,
    )
    return _run(job, sft_stage(config, place, examples))


def sft_stage(config: Config, place: Place, examples: Table) -> Stage:
    """Describe what a model that is fine-tuned on these examples is made from."""
    assert config.sft is not None
    inputs, fraction = {"examples": examples.fingerprint}, config.sft.heldout_fraction or 0.0
    return _stage(config, config.sft, place, inputs, fraction)


def _stage(
    config: Config,
    settings: TrainerConfig,
    place: Place,
    inputs: dict[str, str],
    heldout_fraction: float,
) -> Stage:
    return Stage(
        place=place,
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
            "seed": place.seed,
            "heldout_fraction": heldout_fraction,
            **_stopping(settings),
            **_centering(settings),
        },
    )


def _stopping(settings: TrainerConfig) -> dict[str, Any]:
    """Return what decides which step is exported; nothing if that is always the last one."""
    if settings.early_stopping is None:
        return {}
    return {
        "early_stopping": content_of(settings.early_stopping),
        "evaluate_every_steps": settings.evaluate_every_steps,
    }


def _centering(settings: TrainerConfig) -> dict[str, Any]:
    """Return a reward model's centering; nothing without it, as in keys of before it came."""
    objective = settings.objective if isinstance(settings, TrainingConfig) else None
    weight = objective.centering_weight if isinstance(objective, RewardModelObjective) else 0.0
    return {"centering_weight": weight} if weight else {}


def _run(job: TrainJob, stage: Stage, workers: EarlyWorkers | None = None) -> ModelConfig:
    # Only changes are carried over: the trained folder brings its own tokenizer.
    trained = job.model.model_copy(update={"path": job.folder.child(MODEL).uri, "revision": None})
    if open_stage(stage, refuse_to_mend=functools.partial(_refuse_to_mend, job)) is not None:
        logger.info("[%s] nothing to do: the model is there", job.what)
        return trained
    job.folder.delete(ERROR_FILE)
    before = stacks_in(job.folder)
    with reported_steps(job.folder), _shown_progress(job.folder), _watched(job):
        try:
            _train(job, workers)
        except Exception as error:
            _raise_stalled(job, before, error)
            raise
    _raise_recorded_error(job.folder)
    rows = read_metrics(job.folder)
    held = job.folder.read_json(EXPORT_FILE)
    exported = read_evaluation(job.folder, EXPORTED_FILE)
    facts = {"steps": len(rows), "last_metrics": rows[-1], "export": held, **_facts(exported)}
    commit_files(stage, weights_fingerprint(trained), facts)
    text = (
        "[%s] the exported model, loaded again: %d values, largest difference %.2g (tolerance %g)"
    )
    logger.info(text, job.what, held["values"], held["largest_difference"], held["tolerance"])
    logger.info("[%s] done: %d steps, loss %.4f", job.what, len(rows), rows[-1]["loss"])
    if exported is not None:
        _log_heldout(job, exported)
    return trained


def _facts(exported: Measured | None) -> dict[str, Any]:
    """Return what the manifest says of a training that was measured on held-out data."""
    if exported is None:
        return {}
    return {
        "exported_step": exported.step,
        "planned_steps": exported.steps["planned"],
        "heldout": exported.means,
    }


def _log_heldout(job: TrainJob, exported: Measured) -> None:
    before = read_evaluation(job.folder, BEFORE_FILE)
    changes = ", ".join(
        f"{name} {before.means[name]:.4f} -> {exported.means[name]:.4f}"
        for name in _SHOWN
        if before is not None and name in exported.means
    )
    text = "[%s] on %d held-out groups: %s"
    logger.info(text, job.what, len(exported.weights), changes)
    done, planned = exported.steps["done"], exported.steps["planned"]
    stopping = job.settings.early_stopping
    if stopping is not None:
        end = "to its last step" if done == planned else f"to step {done} of {planned}"
        text = "[%s] training went %s; exported is step %d, the best by held-out %s"
        logger.info(text, job.what, end, exported.step, stopping.metric)


def _refuse_to_mend(job: TrainJob, damaged: list[str], manifest: dict[str, Any]) -> str | None:
    """Return why an export alone cannot rewrite damaged files of a finished training."""
    exported = (f"{MODEL}/", f"{ADAPTER}/", EXPORT_FILE, EXPORTED_FILE)
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
def _watched(job: TrainJob) -> Generator[None]:
    """End workers that give no sign of life, and log what the others wait for."""
    settings = job.settings
    limit = settings.answer_within_seconds
    ranks = Watched(job.folder, job.what, limit, "training.answer_within_seconds")
    with watching([ranks]) as watch, waiting(job.what, lambda: _obstacle(job, watch)):
        yield


def _obstacle(job: TrainJob, watch: Watch) -> Obstacle | None:
    """Return what keeps the train workers from starting, if anything does."""
    settings = job.settings
    ranks = watch.at_work()
    if not ranks:
        cpus, gpus = settings.cpus_per_worker, settings.gpus_per_worker
        return Obstacle(
            f"{as_holder(settings)} of {cpus:g} CPUs (on CUDA {gpus:g} GPUs) each to start",
            holders(but=as_holder(settings)),
            "their start; where they find no room, others that end, another node, or fewer workers: "
            "training.num_workers [1, most]",
        )
    still_for = min(still for _, _, _, still in ranks)
    if still_for < waits.FIRST_SECONDS:
        return None
    silent, longest = settings.answer_within_seconds, settings.progress_within_seconds
    return Obstacle(
        "the slowest train worker",
        watch.words(),
        f"one that shows nothing is ended after {silent:g} s (training.answer_within_seconds), one "
        f"that gets no further after {longest:g} s (training.progress_within_seconds); all then go "
        "on from the last checkpoint",
        still_for,
    )


def _raise_stalled(job: TrainJob, before: list[str], error: Exception) -> None:
    """Report the stacks that workers left when they ended for lack of progress.

    Raises:
        ClusterError: there are such stacks.
    """
    found = [path for path in stacks_in(job.folder) if path not in before]
    if found and own_error(error) is None:
        settings = job.settings
        raise ClusterError(
            f"{job.what}: train workers got no further for {settings.progress_within_seconds:g} s, "
            f"more often than training.max_failures ({settings.max_failures}); the stacks of their "
            f"threads: {', '.join(found)}",
            "each train worker gets further within training.progress_within_seconds",
            "see in the stacks what they wait for; where the work itself takes so long, raise the "
            "limit. The same command goes on from the last checkpoint",
        ) from error


@contextmanager
def _shown_progress(folder: Folder) -> Generator[None]:
    """Log the workers' progress lines while the block runs."""
    shown = b""

    def show() -> None:
        nonlocal shown
        try:
            line = folder.read_bytes(PROGRESS_FILE) if folder.exists(PROGRESS_FILE) else shown
        except OSError as error:  # it reappears, or ends the training itself
            logger.warning("progress cannot be read: %s", said_by(error))
            return
        if line != shown:
            say(line.decode())
            shown = line

    folder.delete(PROGRESS_FILE)
    try:
        with periodically("raydpo-progress", show, _SECONDS_BETWEEN_LOOKS):
            yield
    finally:
        folder.delete(PROGRESS_FILE)


def _raise_recorded_error(folder: Folder) -> None:
    if folder.exists(ERROR_FILE):
        name, *words = folder.read_json(ERROR_FILE)
        raise _RECORDED[name](*words)


#: File with the last step that was reported; it exists while a training is not done.
REPORTED_FILE: Final = "callbacks.json"


@contextmanager
def reported_steps(folder: Folder) -> Generator[None]:
    """Report each step and measurement of a training while the block runs, and the rest at its end.

    Workers may go on for a while after their driver was killed, so metrics.jsonl does not show which
    steps it reported: a file does.
    """
    if not has_callbacks(folder):
        folder.delete(REPORTED_FILE)
        yield
        return
    if not folder.exists(REPORTED_FILE):
        done_before = max((row["step"] for row in read_rows(folder)), default=-1)
        folder.write_json(REPORTED_FILE, {"step": done_before})
    reported: int = folder.read_json(REPORTED_FILE)["step"]
    size_before = 0

    def report() -> None:
        nonlocal reported, size_before
        size = folder.files().get(METRICS_FILE, 0)
        if size == size_before:
            return
        for row in read_rows(folder):
            if row["step"] > reported:
                reported = row["step"]
                if reported > 0:
                    notify("step", folder, row, reported)
                if values := heldout_values(row):
                    notify("heldout", folder, values, reported)
                folder.write_json(REPORTED_FILE, {"step": reported})
        size_before = size

    with periodically("raydpo-steps", report, _SECONDS_BETWEEN_LOOKS):
        yield
    report()
    folder.delete(REPORTED_FILE)
