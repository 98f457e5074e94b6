"""The work of each Ray Train worker: load, train, return checkpoints and the model.

A `TrainJob` describes the work. Metrics and a Hugging Face folder go to the stage's folder, and
checkpoints go through Ray Train.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import ray.train
import torch
from pyarrow.fs import FileSelector
from ray.train import Checkpoint
from ray.train.torch import get_device

from raydpo.config.base import ROUNDING_NATS
from raydpo.config.job import ModelConfig, SftConfig, TrainerConfig, TrainingConfig
from raydpo.config.objective_base import COLUMN_OF_UNIT, Unit
from raydpo.config.objectives import own_objectives, single_objectives
from raydpo.core.errors import DataError, ModelError, NumericsError, RaydpoError, RunError
from raydpo.core.imports import uncollected
from raydpo.core.parts import Table
from raydpo.core.progress import logger, start_logging
from raydpo.core.pulse import Beat, beating
from raydpo.core.run import read_rows
from raydpo.core.storage import Folder, fingerprint, locate
from raydpo.core.tables import Row
from raydpo.models.loading import (
    load_causal_lm,
    load_scalar_head,
    load_tokenizer,
    meta_causal_lm,
    meta_scalar_head,
)
from raydpo.training.attention.backends import IMPLEMENTATIONS
from raydpo.training.attention.interface import attention_of, set_attention
from raydpo.training.checkpoint_files import MANIFEST as CHECKPOINT_MANIFEST
from raydpo.training.checkpoints import newest_whole
from raydpo.training.composition import Plan
from raydpo.training.export import MODEL, Trained, export
from raydpo.training.groups import (
    GroupDataset,
    example_rows,
    joined_rows,
    rows_without_reference,
    write_groups,
)
from raydpo.training.handover import AwaitedJob, GivenJob
from raydpo.training.heldout import Evaluation
from raydpo.training.heldout_files import BEFORE_FILE, EXPORTED_FILE, write_evaluation
from raydpo.training.logps import TokenLogps
from raydpo.training.loop import BeginSave, EndSave, Failure, Hooks, Metrics, Outcome, train
from raydpo.training.metrics_log import MetricsLog
from raydpo.training.objectives import Objective, SftObjective, make_objective
from raydpo.training.own_loss import load_loss
from raydpo.training.probe import probe
from raydpo.training.reward import ended_by_eos, reward_module
from raydpo.training.sharding import World, current_world, full_parameters
from raydpo.training.sharing import token_module
from raydpo.training.split import is_heldout, source_of_example
from raydpo.training.watchdog import ends_without_progress

#: File for errors that would recur, such as a numerical failure. The workers write it and end,
#: because Ray Train would restart them for a raised error.
ERROR_FILE: Final = "error.json"
#: File that says how the exported model compared with the trainer.
EXPORT_FILE: Final = "export.json"

#: A function called with a model's folder and this worker's device; it raises nothing.
Publish = Callable[[Path, torch.device], object]

#: A function called with tokens, and the sum and the maximum of differences in nats.
CheckRatios = Callable[[int, float, float], None]

#: A folder inside the stage's folder.
CHECKPOINTS: Final = "checkpoints"


@dataclass(frozen=True)
class TrainJob:
    """Everything that a worker needs to know; picklable.

    Attributes:
        model: the model that the parameters start from.
        settings: the section `training` or `sft` of the configuration.
        table: the preferences, or the examples for SFT.
        reference: reference log-probs of the preferences; None for SFT, and for objectives that
            need none.
        reference_model: the reference itself, if the objective runs it beside the policy.
        folder: the stage's folder.
        seed: the seed of the order of groups.
        heldout_fraction: share of prompts that are left out.
        starts_at_reference: whether policy and reference have the same weights, so that step 0 must
            show logratios of 0.
        what: the stage and round, for the log.
        search: folders to search for a user's own loss, after Python's own.
        check_ratios: called before the first update, if this very model sampled all completions,
            with the number of tokens, and the sum and the maximum of the absolute differences
            between its log-probs and the sampler's, in nats; raises NumericsError.
        publish: called by rank 0, during the upload, with the exported model's folder on its own
            disk.
    """

    model: ModelConfig
    settings: TrainerConfig
    table: Table
    reference: Table | None
    reference_model: ModelConfig | None
    folder: Folder
    seed: int
    heldout_fraction: float
    starts_at_reference: bool
    what: str
    search: tuple[str, ...] = ()
    publish: Publish | None = None
    check_ratios: CheckRatios | None = None

    @property
    def trains_reward_model(self) -> bool:
        """Whether the model gets a head of one number."""
        settings = self.settings
        return isinstance(settings, TrainingConfig) and settings.objective.scalar_head


def run_worker(arguments: dict[str, Any]) -> None:
    """Run a Ray Train worker; `arguments["job"]` leads to the `TrainJob`."""
    promised: GivenJob | AwaitedJob = arguments["job"]
    start_logging()
    if isinstance(promised, AwaitedJob):
        with uncollected():
            meta_causal_lm(promised.model)  # imports the model's code meanwhile
    job: TrainJob | None = promised.wait()
    if job is None:
        return
    world = current_world(get_device())
    settings = job.settings
    look = ends_without_progress(job.folder, world.rank, settings.progress_within_seconds)
    limit, name = settings.answer_within_seconds, f"rank-{world.rank:05d}"
    with beating(job.folder, name, "reading the data", limit, look) as beat:
        try:
            _train(job, world, beat)
        except NumericsError as error:
            if world.rank == 0:
                _record(job, error)


def _train(job: TrainJob, world: World, beat: Beat) -> None:
    data, heldout = _dataset(job), _heldout(job)
    plan = _plan(job, len(data))
    beat.move("loading the model")
    module = _module(job, world)
    if job.reference_model is not None:
        frozen = load_causal_lm(job.reference_model)
        module.put_beside(token_module(frozen, job.reference_model, world.device))
    with _resume_point(job) as (folder, start):
        _train_and_export(job, world, (data, heldout), module, plan, folder, start, beat)


def _module(job: TrainJob, world: World) -> TokenLogps:
    """Load the module; if it is sharded, ranks other than the first load only its shapes."""
    sharded = job.settings.strategy == "fsdp" and world.size > 1
    if not sharded or world.rank == 0:
        module = _whole_module(job, world)
        if sharded:
            world.tell(attention_of(module.model))
        return module
    if job.trains_reward_model:
        world.tell("")
        return reward_module(meta_scalar_head(job.model), job.model)
    model = meta_causal_lm(job.model)
    attention = world.tell("")  # the attention that rank 0 chose with a forward pass
    set_attention(model, attention)
    module = TokenLogps(model, job.model.precision)
    module.shared = attention in IMPLEMENTATIONS.values()
    return module


def _whole_module(job: TrainJob, world: World) -> TokenLogps:
    if job.trains_reward_model:
        return reward_module(load_scalar_head(job.model), job.model)
    return token_module(load_causal_lm(job.model), job.model, world.device)


@contextmanager
def _resume_point(job: TrainJob) -> Generator[tuple[Path | None, int]]:
    """Yield the newest whole checkpoint, on this machine, and its step; None and 0 without any."""
    with ExitStack() as stack:
        local = (stack.enter_context(c.as_directory()) for c in _checkpoints(job))
        found = newest_whole(Path(folder) for folder in local)
        yield found or (None, 0)


def _checkpoints(job: TrainJob) -> list[Checkpoint]:
    """Return all checkpoints in the stage's folder, newest first; Ray names them by their time."""
    folder = job.folder.child(CHECKPOINTS)
    filesystem, path = locate(folder.uri)
    selector = FileSelector(path, allow_not_found=True)
    names = sorted(
        info.base_name
        for info in filesystem.get_file_info(selector)
        if info.base_name.startswith("checkpoint_") and not info.is_file
    )
    return [Checkpoint(f"{path}/{name}", filesystem) for name in reversed(names)]


@contextmanager
def _checkpoint_of(job: TrainJob, step: int) -> Generator[Path]:
    """Yield the checkpoint of a step, on this machine; every rank calls this.

    Raises:
        DataError: there is none, or it is damaged.
    """
    with ExitStack() as stack:
        found = (one for one in _checkpoints(job) if _step_in(job, one) == step)
        local = (Path(stack.enter_context(one.as_directory())) for one in found)
        whole = newest_whole(local)
        if whole is None:
            raise DataError(
                f"{job.folder.uri}/{CHECKPOINTS} has no whole checkpoint of step {step}",
                "early stopping exports the best step, and keeps its checkpoint until then",
                "restore the files; or train again: `--redo training`",
            )
        yield whole[0]


def _step_in(job: TrainJob, checkpoint: Checkpoint) -> int | None:
    """Return a checkpoint's step by its manifest alone; None if that cannot be read."""
    folder = job.folder.child(CHECKPOINTS, PurePosixPath(checkpoint.path).name)
    try:
        return folder.read_json(CHECKPOINT_MANIFEST)["step"]
    except (DataError, OSError, KeyError):
        return None


def _train_and_export(
    job: TrainJob,
    world: World,
    sides: tuple[GroupDataset, GroupDataset | None],
    module: TokenLogps,
    plan: Plan,
    resume_from: Path | None,
    start: int,
    beat: Beat,
) -> None:
    data, heldout = sides
    log = _metrics_log(job, plan, start) if world.rank == 0 else None
    hooks = Hooks(
        log=log.log if log else _ignore_step,
        checkpoint=_checkpoint_hook(log),
        first_step=first_step_check(job),
        failed=_failure_hook(job, world),
        moving=beat.move,
        first_ratios=job.check_ratios or _ignore_ratios,
        before=_keep_before(job) if log else _ignore,
        checkpoint_of=partial(_checkpoint_of, job),
        ended=_keep_outcome(job) if log else _ignore,
    )
    objective = _objective(job)
    wrapped = train(
        module, data, objective, job.settings, plan, world, hooks, resume_from, heldout=heldout
    )
    beat.move("probe")
    probed = probe(wrapped, module.shared, job.trains_reward_model, data, plan, world)
    lora, rewards = job.settings.lora, job.trains_reward_model
    trained = Trained(job.model, lora, rewards, full_parameters(wrapped), probed)
    beat.move("export")
    if log is not None:
        log.close()
        _export(job, trained, world.device)


def _dataset(job: TrainJob, heldout: bool = False) -> GroupDataset:
    """Return the groups to train on, or those that are held out of it."""
    rows = read_rows(job.table.folder, job.table.manifest)
    if not isinstance(job.settings, TrainingConfig):
        return GroupDataset(_examples(job, rows, heldout))
    needed: list[Unit] = sorted({one.unit for one in single_objectives(job.settings.objective)})
    key = [job.table.fingerprint, job.heldout_fraction, job.seed, needed]

    def wanted(row: Row) -> bool:
        on_its_side = is_heldout(row["prompt_id"], job.heldout_fraction, job.seed) == heldout
        return on_its_side and all(row[COLUMN_OF_UNIT[unit]] for unit in needed)

    if job.trains_reward_model:
        key.append("ended by EOS")
        eos_id = load_tokenizer(job.model).eos_token_id
        assert isinstance(eos_id, int)  # `raydpo check` refuses a tokenizer without one
        ended = (ended_by_eos(row, eos_id) for row in rows)
        kept = rows_without_reference(ended, wanted)
    elif job.reference is None:
        kept = rows_without_reference(rows, wanted)
    else:
        key.append(job.reference.fingerprint)
        reference = read_rows(job.reference.folder, job.reference.manifest)
        kept = joined_rows(rows, reference, wanted)
    return GroupDataset(write_groups(kept, fingerprint([*key, "held out"] if heldout else key)))


def _examples(job: TrainJob, rows: Iterable[Row], heldout: bool) -> Path:
    """Write the SFT examples of one side of the split; return the file."""
    if not job.heldout_fraction:
        return write_groups(example_rows(rows), fingerprint([job.table.fingerprint]))
    kept = (
        row
        for row in rows
        if is_heldout(source_of_example(row["example_id"]), job.heldout_fraction, job.seed)
        == heldout
    )
    key = [job.table.fingerprint, job.heldout_fraction, job.seed, heldout]
    return write_groups(example_rows(kept), fingerprint(key))


def _heldout(job: TrainJob) -> GroupDataset | None:
    """Return the groups to measure on; None if the settings ask for no measurement.

    Raises:
        DataError: measurements are asked for, and no row is held out.
    """
    if not job.settings.evaluates_heldout:
        return None
    data = _dataset(job, heldout=True)
    if len(data) == 0:
        raise DataError(
            f"{job.table.folder.uri} leaves no rows to measure on: a share of "
            f"{job.heldout_fraction:g} is held out",
            "a measurement on held-out data needs at least one row",
            "give more data, or hold out a larger share (heldout_fraction)",
        )
    return data


def _plan(job: TrainJob, groups: int) -> Plan:
    settings = job.settings
    if groups == 0:
        raise DataError(
            f"{job.table.folder.uri} leaves no rows to train on",
            "training needs at least one",
            "give more data, or hold out a smaller share (heldout_fraction)",
        )
    if isinstance(settings, TrainingConfig):
        batch = settings.global_batch_groups
    else:
        assert isinstance(settings, SftConfig)
        batch = settings.global_batch_sequences
    return Plan(groups, batch, settings.epochs, settings.max_steps, job.seed)


def _objective(job: TrainJob) -> Objective:
    if isinstance(job.settings, TrainingConfig):
        for section in own_objectives(job.settings.objective):
            load_loss(section, job.search)
        return make_objective(job.settings.objective, job.seed)
    return SftObjective()


def _metrics_log(job: TrainJob, plan: Plan, start: int) -> MetricsLog:
    settings = job.settings
    return MetricsLog(
        job.folder, start, plan.total_steps, settings.log_every_steps, settings.trackers, job.what
    )


def _keep_before(job: TrainJob) -> Callable[[Evaluation], None]:
    return lambda evaluation: write_evaluation(job.folder, BEFORE_FILE, evaluation)


def _keep_outcome(job: TrainJob) -> Callable[[Outcome], None]:
    def keep(outcome: Outcome) -> None:
        if outcome.evaluation is not None:
            steps = {"done": outcome.done, "planned": outcome.planned}
            write_evaluation(job.folder, EXPORTED_FILE, outcome.evaluation, steps)

    return keep


def _ignore(_: object) -> None:
    """Ignore a result: ranks other than 0 write nothing, because results are equal on all ranks."""


def _ignore_step(step: int, metrics: Metrics) -> None:
    """Ignore a step: ranks other than 0 keep no log, because metrics are equal on all ranks."""


def _ignore_ratios(tokens: int, total_nats: float, largest_nats: float) -> None:
    """Ignore how far policy and sampler differ: another policy sampled, or none."""


def _checkpoint_hook(
    log: MetricsLog | None,
) -> Callable[[int, Metrics, BeginSave], EndSave]:
    """Build a hook that saves through Ray Train, which copies all ranks' files together."""

    def begin(step: int, metrics: Metrics, save: BeginSave) -> EndSave:
        folder = tempfile.mkdtemp()
        end_save = save(Path(folder))

        def end() -> None:
            end_save()
            if log is not None:
                log.write()
            checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"step": step, **metrics}, checkpoint=checkpoint)
            shutil.rmtree(folder)

        return end

    return begin


def first_step_check(job: TrainJob) -> Callable[[float], None]:
    """Return a check of the largest logratio (nats) before the first update; it may do nothing."""

    def check(largest_logratio: float) -> None:
        if not isinstance(job.settings, TrainingConfig) or not job.starts_at_reference:
            return
        limit = job.settings.step_zero_tolerance or ROUNDING_NATS[job.model.precision]
        if not largest_logratio <= limit:
            raise NumericsError(
                f"before the first update a token's logratio is {largest_logratio:.3g} nats",
                f"policy and reference are the same model, so it is 0 (within {limit:g}, "
                "training.step_zero_tolerance)",
                "they differ in weights, tokenizer, model.precision, model.attention or device: "
                "delete the round's `reference` folder and run the same command again; "
                "training.compile in bfloat16 rounds differently: with it raise the tolerance "
                "above this",
            )

    return check


def _failure_hook(job: TrainJob, world: World) -> Callable[[Failure], None]:
    def write(failure: Failure) -> None:
        if world.rank == 0:
            job.folder.write_json(
                f"failed-step-{failure.step:06d}.json",
                {
                    "step": failure.step,
                    "groups": failure.groups,
                    "not_finite_by_rank": failure.culprits,
                },
            )

    return write


def _export(job: TrainJob, trained: Trained, device: torch.device) -> None:
    """Write the final model; hours of work are in it, so every failure leaves a way to recover."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            held = export(trained, Path(folder))
            job.folder.write_json(EXPORT_FILE, asdict(held))
            with ThreadPoolExecutor(1) as beside:
                if job.publish is not None:
                    beside.submit(job.publish, Path(folder, MODEL), device)
                job.folder.upload(Path(folder))
    except ModelError as error:
        _record(job, error)
    except Exception as error:
        logger.exception("[%s] the export failed", job.what)
        own = RunError(
            f"the trained model cannot be written: {type(error).__name__}: {error}",
            f"{job.folder.uri} and the temporary folder {tempfile.gettempdir()} take it",
            "nothing is lost: the last checkpoint is kept. Fix what the message names, and run "
            "the same command again: it only exports",
        )
        if not job.folder.is_local:  # a store may work again when Ray Train retries
            raise own from error
        _record(job, own)


def _record(job: TrainJob, error: RaydpoError) -> None:
    """Leave an error for the driver; if raised, Ray Train would restart the workers for it.

    Raises:
        RaydpoError: the error file cannot be written either.
    """
    words = [type(error).__name__, error.value, error.rule, error.way_out]
    try:
        job.folder.write_json(ERROR_FILE, words)
    except OSError:
        raise error from None
