"""What each Ray Train worker does: load, train, hand back checkpoints and the model.

What comes in: a `TrainJob`. What goes out: metrics and a Hugging Face folder in the
stage's folder; checkpoints through Ray Train.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ray.train
import torch
from pyarrow.fs import FileSelector
from ray.train import Checkpoint
from ray.train.torch import get_device

from raydpo.config import ModelConfig, SftConfig, TrainerConfig, TrainingConfig
from raydpo.config_base import ROUNDING_NATS
from raydpo.config_objective_base import COLUMN_OF_UNIT, Unit
from raydpo.config_objectives import single_objectives
from raydpo.errors import DataError, ModelError, NumericsError, RaydpoError, RunError
from raydpo.imports import uncollected
from raydpo.models import (
    load_causal_lm,
    load_scalar_head,
    load_tokenizer,
    meta_causal_lm,
    meta_scalar_head,
)
from raydpo.parts import Table
from raydpo.progress import logger, start_logging
from raydpo.run import read_rows
from raydpo.split import is_heldout
from raydpo.storage import Folder, fingerprint, locate
from raydpo.tables import Row
from raydpo.training.attention.backends import IMPLEMENTATIONS
from raydpo.training.attention.interface import attention_of, set_attention
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
from raydpo.training.logps import TokenLogps
from raydpo.training.loop import BeginSave, EndSave, Failure, Hooks, Metrics, train
from raydpo.training.metrics_log import MetricsLog
from raydpo.training.objectives import Objective, SftObjective, make_objective
from raydpo.training.probe import probe
from raydpo.training.reward import ended_by_eos, reward_module
from raydpo.training.sharding import World, current_world, full_parameters
from raydpo.training.sharing import token_module

#: What would come again, such as a numerical failure, is written here, and the workers end
#: instead of being started again by Ray Train.
ERROR_FILE: Final = "error.json"
#: How the exported model was held against the trainer.
EXPORT_FILE: Final = "export.json"

#: What is done with a model's folder and this worker's device; it raises nothing.
Publish = Callable[[Path, torch.device], object]

#: Folder inside the stage's folder.
CHECKPOINTS: Final = "checkpoints"


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs to know; picklable.

    Attributes:
        model: where the parameters start.
        settings: `training` or `sft` of the configuration.
        table: preferences, or examples for SFT.
        reference: reference log-probs of the preferences; None for SFT, and for objectives
            that need none.
        reference_model: the reference itself, where the objective runs it beside the policy.
        folder: the stage's folder.
        seed: of the order of groups.
        heldout_fraction: share of prompts left out.
        starts_at_reference: whether policy and reference have the same weights, so that
            step 0 must show logratios of 0.
        what: stage and round, for the log.
        publish: called by rank 0 with the exported model's folder on its own disk, while that
            is uploaded.
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
    publish: Publish | None = None

    @property
    def trains_reward_model(self) -> bool:
        """Whether the model gets a head of one number."""
        settings = self.settings
        return isinstance(settings, TrainingConfig) and settings.objective.scalar_head


def run_worker(arguments: dict[str, Any]) -> None:
    """Ray Train's entry point; `arguments["job"]` leads to the `TrainJob`."""
    promised: GivenJob | AwaitedJob = arguments["job"]
    start_logging()
    if isinstance(promised, AwaitedJob):
        with uncollected():
            meta_causal_lm(promised.model)  # imports meanwhile what the model needs
    job: TrainJob | None = promised.wait()
    if job is None:
        return
    world = current_world(get_device())
    try:
        _train(job, world)
    except NumericsError as error:
        if world.rank == 0:
            _record(job, error)


def _train(job: TrainJob, world: World) -> None:
    data = _dataset(job)
    plan = _plan(job, len(data))
    module = _module(job, world)
    if job.reference_model is not None:
        frozen = load_causal_lm(job.reference_model)
        module.put_beside(token_module(frozen, job.reference_model, world.device))
    with _resume_point(job) as (folder, start):
        _train_and_export(job, world, data, module, plan, folder, start)


def _module(job: TrainJob, world: World) -> TokenLogps:
    """The module; where it is sharded, all ranks but the first need its shapes only."""
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
    attention = world.tell("")  # what rank 0 found out by a forward pass
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
    """The newest whole checkpoint, on this machine, and its step; without any, None and 0."""
    with ExitStack() as stack:
        local = (stack.enter_context(c.as_directory()) for c in _checkpoints(job))
        found = newest_whole(Path(folder) for folder in local)
        yield found or (None, 0)


def _checkpoints(job: TrainJob) -> list[Checkpoint]:
    """All checkpoints in the stage's folder, newest first: Ray names them by their time."""
    folder = job.folder.child(CHECKPOINTS)
    filesystem, path = locate(folder.uri)
    selector = FileSelector(path, allow_not_found=True)
    names = sorted(
        info.base_name
        for info in filesystem.get_file_info(selector)
        if info.base_name.startswith("checkpoint_") and not info.is_file
    )
    return [Checkpoint(f"{path}/{name}", filesystem) for name in reversed(names)]


def _train_and_export(
    job: TrainJob,
    world: World,
    data: GroupDataset,
    module: TokenLogps,
    plan: Plan,
    resume_from: Path | None,
    start: int,
) -> None:
    log = _metrics_log(job, plan, start) if world.rank == 0 else None
    hooks = Hooks(
        log=log.log if log else _ignore_step,
        checkpoint=_checkpoint_hook(log),
        first_step=first_step_check(job),
        failed=_failure_hook(job, world),
    )
    wrapped = train(module, data, _objective(job), job.settings, plan, world, hooks, resume_from)
    probed = probe(wrapped, module.shared, job.trains_reward_model, data, plan, world)
    lora, rewards = job.settings.lora, job.trains_reward_model
    trained = Trained(job.model, lora, rewards, full_parameters(wrapped), probed)
    if log is not None:
        log.close()
        _export(job, trained, world.device)


def _dataset(job: TrainJob) -> GroupDataset:
    rows = read_rows(job.table.folder, job.table.manifest)
    if not isinstance(job.settings, TrainingConfig):
        return GroupDataset(write_groups(example_rows(rows), fingerprint([job.table.fingerprint])))
    needed: list[Unit] = sorted({one.unit for one in single_objectives(job.settings.objective)})
    key = [job.table.fingerprint, job.heldout_fraction, job.seed, needed]

    def trained_on(row: Row) -> bool:
        heldout = is_heldout(row["prompt_id"], job.heldout_fraction, job.seed)
        return not heldout and all(row[COLUMN_OF_UNIT[unit]] for unit in needed)

    if job.trains_reward_model:
        key.append("ended by EOS")
        eos_id = load_tokenizer(job.model).eos_token_id
        assert isinstance(eos_id, int)  # `raydpo check` refuses a tokenizer without one
        ended = (ended_by_eos(row, eos_id) for row in rows)
        kept = rows_without_reference(ended, trained_on)
    elif job.reference is None:
        kept = rows_without_reference(rows, trained_on)
    else:
        key.append(job.reference.fingerprint)
        reference = read_rows(job.reference.folder, job.reference.manifest)
        kept = joined_rows(rows, reference, trained_on)
    return GroupDataset(write_groups(kept, fingerprint(key)))


def _plan(job: TrainJob, groups: int) -> Plan:
    settings = job.settings
    if groups == 0:
        raise DataError(
            f"{job.table.folder.uri} leaves no rows to train on",
            "training needs at least one",
            "give more data, or hold out a smaller share (evaluation.heldout_fraction)",
        )
    if isinstance(settings, TrainingConfig):
        batch = settings.global_batch_groups
    else:
        assert isinstance(settings, SftConfig)
        batch = settings.global_batch_sequences
    return Plan(groups, batch, settings.epochs, settings.max_steps, job.seed)


def _objective(job: TrainJob) -> Objective:
    if isinstance(job.settings, TrainingConfig):
        return make_objective(job.settings.objective, job.seed)
    return SftObjective()


def _metrics_log(job: TrainJob, plan: Plan, start: int) -> MetricsLog:
    settings = job.settings
    return MetricsLog(
        job.folder, start, plan.total_steps, settings.log_every_steps, settings.trackers, job.what
    )


def _ignore_step(step: int, metrics: Metrics) -> None:
    """Ranks other than 0 keep no log: metrics are equal on all of them."""


def _checkpoint_hook(
    log: MetricsLog | None,
) -> Callable[[int, Metrics, BeginSave], EndSave]:
    """Checkpoints through Ray Train, which copies every rank's files into one folder."""

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
    """What is done with the largest logratio (nats) before the first update: refused, or nothing."""

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
                "training.compile in bfloat16 rounds elsewhere: with it raise the tolerance above this",
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
    """Write the final model. Hours of work are in it: whatever goes wrong leaves a way out."""
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
            "nothing is lost: the last checkpoint is kept. Mend what the message names, and run "
            "the same command again: it only exports",
        )
        if not job.folder.is_local:  # a store may answer when Ray Train tries again
            raise own from error
        _record(job, own)


def _record(job: TrainJob, error: RaydpoError) -> None:
    """Leave an error for the driver: raised, Ray Train would start the workers again for it.

    Raises:
        RaydpoError: not even this can be written.
    """
    words = [type(error).__name__, error.value, error.rule, error.way_out]
    try:
        job.folder.write_json(ERROR_FILE, words)
    except OSError:
        raise error from None
