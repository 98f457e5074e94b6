"""The train loop, for preferences and for supervised fine-tuning alike.

It takes a model, groups, an objective, settings, and hooks that receive metrics and checkpoints. It
leaves trained parameters in the module. It needs no Ray: it runs under plain `python`, or under any
launcher that starts a process group.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from raydpo.config.job import TrainerConfig
from raydpo.core.errors import NumericsError
from raydpo.training.batch import MicroBatch, build_micro_batch
from raydpo.training.checkpoints import load_checkpoint, save_checkpoint
from raydpo.training.composition import Plan, rank_micro_batches
from raydpo.training.groups import GroupDataset
from raydpo.training.heldout import Evaluation, Evaluator, Watch
from raydpo.training.logps import TokenLogps, token_outputs
from raydpo.training.lora import add_adapter
from raydpo.training.objectives import Objective
from raydpo.training.optimizer import learning_rate, make_optimizer
from raydpo.training.sharding import World, clip_gradients, gradient_sync, parallelize
from raydpo.training.stopping import Best, best_of
from raydpo.training.survey import at_global_batch

Metrics = dict[str, float]
EndSave = Callable[[], None]
#: A function that begins to write this rank's share of a checkpoint; see `save_checkpoint`.
BeginSave = Callable[[Path], EndSave]
Parallelize = Callable[[TokenLogps, TrainerConfig, World], nn.Module]


def _ignored(_: str) -> None:
    """Ignore a report of progress if nobody watches."""


def _ignored_ratios(tokens: int, total_nats: float, largest_nats: float) -> None:
    """Ignore how far policy and sampler differ if another policy sampled."""


def _no_measurement(_: Evaluation) -> None:
    """Ignore a measurement if nobody keeps it."""


def _no_checkpoints(step: int) -> AbstractContextManager[Path]:
    raise AssertionError(f"nobody knows where the checkpoint of step {step} is")


@dataclass(frozen=True)
class Outcome:
    """What a training leaves.

    Attributes:
        exported_step: the step whose parameters are left in the module.
        done: steps that were done.
        planned: steps of the whole training; more than `done` if training stopped early.
        evaluation: the measurement of these parameters on held-out data; None if none is held out.
    """

    exported_step: int
    done: int
    planned: int
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Failure:
    """A failed step, described for inspection.

    Attributes:
        step: counted from 1.
        groups: names of the groups of the global batch.
        culprits: by rank, the groups of its micro-batches whose loss or rewards are not finite;
            empty if all are finite and only the gradient is not.
    """

    step: int
    groups: list[str]
    culprits: dict[int, list[str]]


@dataclass(frozen=True)
class Hooks:
    """Where the loop's results go.

    Attributes:
        log: called on every rank after each step with the step (from 1) and its metrics, and if
            data are held out, with 0 and the metrics before the first step.
        checkpoint: called on every rank with the step, its metrics and a function that begins to
            write this rank's share of a checkpoint into a folder; returns a function that finishes
            it.
        first_step: called on every rank before the first update with the largest logratio of a
            token over all ranks.
        first_ratios: called on every rank before the first update, if the data have log-probs of
            the sampler, with the number of tokens over all ranks, and the sum and the maximum of
            the absolute differences between policy and sampler, in nats.
        failed: called before a non-finite loss stops the run.
        moving: called on every rank with a description of each next action.
        before: called on every rank with the measurement on held-out data before the first step.
        checkpoint_of: returns a block in which this machine has the checkpoint of a step.
        ended: called on every rank when the module holds the parameters to export.
    """

    log: Callable[[int, Metrics], None]
    checkpoint: Callable[[int, Metrics, BeginSave], EndSave]
    first_step: Callable[[float], None]
    failed: Callable[[Failure], None]
    moving: Callable[[str], None] = _ignored
    first_ratios: Callable[[int, float, float], None] = _ignored_ratios
    before: Callable[[Evaluation], None] = _no_measurement
    checkpoint_of: Callable[[int], AbstractContextManager[Path]] = _no_checkpoints
    ended: Callable[[Outcome], None] = lambda _: None


def train(
    module: TokenLogps,
    data: GroupDataset,
    objective: Objective,
    settings: TrainerConfig,
    plan: Plan,
    world: World,
    hooks: Hooks,
    resume_from: Path | None = None,
    around: Parallelize = parallelize,
    heldout: GroupDataset | None = None,
) -> nn.Module:
    """Train to the end of the plan, and return the module, which may be wrapped.

    Every rank calls this with the same arguments except `world`. `around` makes the module
    parallel; `sharding.wrap` does so even for one rank. With `heldout`, groups that are not
    trained on, the module is measured as the settings say. With early stopping, the returned
    module holds the parameters of the best step.

    Raises:
        NumericsError: a loss, reward or gradient is not finite; no rank has updated anything.
        ConfigError: early stopping goes by a metric that the objective does not have.
    """
    module.eval()  # without dropout, like the reference, so that step 0 shows no difference
    if settings.lora is not None:
        add_adapter(module.model, settings.lora, plan.seed)
    wrapped = around(module, settings, world)
    optimizer = make_optimizer(wrapped, settings)
    evaluator = None
    if heldout is not None:
        evaluator = Evaluator(
            wrapped, module.shared, heldout, objective, settings, world, hooks.moving
        )
    watch = Watch(evaluator, settings, plan.total_steps)
    done = _resume(resume_from, wrapped, optimizer, watch)
    if done == 0 and (metrics := watch.before()) and watch.newest is not None:
        hooks.before(watch.newest)
        hooks.log(0, metrics)
    step = Step(wrapped, module.shared, data, objective, settings, plan, world, optimizer, hooks)
    saver = _Saver(wrapped, optimizer, hooks, settings.background_checkpoints)
    while done < plan.total_steps and not watch.stops:
        metrics = step(done)
        done += 1
        hooks.moving(f"after step {done}")
        saver.end()  # the checkpoint begun after the last step was written during this step
        metrics |= watch.after(done)
        hooks.log(done, metrics)
        last = done == plan.total_steps or watch.stops
        if last or done % settings.checkpoint_every_steps == 0 or watch.is_best(done):
            hooks.moving(f"checkpoint of step {done}")
            saver.begin(done, metrics | watch.rank(done), watch.best, last)
    _end(wrapped, optimizer, plan, hooks, watch, done)
    return wrapped


def _resume(folder: Path | None, module: nn.Module, optimizer: Optimizer, watch: Watch) -> int:
    """Restore a checkpoint, with what was best until then; return the number of steps done."""
    if folder is None:
        return 0
    if watch.evaluate is None or watch.settings.early_stopping is None:
        return load_checkpoint(folder, module, optimizer)
    record = Best(0, 0.0, 0.0, 0).as_tensor()
    done = load_checkpoint(folder, module, optimizer, record)
    watch.best = best_of(record)
    return done


def _end(
    module: nn.Module, optimizer: Optimizer, plan: Plan, hooks: Hooks, watch: Watch, done: int
) -> None:
    """Go back to the best step if that is to be exported, and say what the module holds."""
    exported = done if watch.best is None else watch.best.step
    if exported != done:
        hooks.moving(f"checkpoint of step {exported}, the best one")
        with hooks.checkpoint_of(exported) as folder:
            load_checkpoint(folder, module, optimizer)
    hooks.ended(Outcome(exported, done, plan.total_steps, watch.exported(exported)))


@dataclass
class _Saver:
    """Checkpoints, of which at most one is being written at a time."""

    module: nn.Module
    optimizer: Optimizer
    hooks: Hooks
    in_background: bool
    pending: EndSave | None = None

    def begin(self, step: int, metrics: Metrics, best: Best | None, last: bool) -> None:
        """Begin a checkpoint, and also finish it if no work is left to do meanwhile."""
        save = functools.partial(
            save_checkpoint,
            module=self.module,
            optimizer=self.optimizer,
            step=step,
            in_background=self.in_background and not last,
            record=best and best.as_tensor(),
        )
        self.pending = self.hooks.checkpoint(step, metrics, save)
        if last or not self.in_background:
            self.end()

    def end(self) -> None:
        """Wait until the checkpoint that was begun is whole."""
        if self.pending is not None:
            self.pending()
            self.pending = None


@dataclass(frozen=True)
class _Done:
    """A backward pass: its groups, whether it counts, and its sums (0-d tensors)."""

    groups: list[int]
    counts: bool
    sums: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One optimizer update over the global batch.

    `shared` says which layout the module takes: prompts computed once, or padded rows.
    """

    module: nn.Module
    shared: bool
    data: GroupDataset
    objective: Objective
    settings: TrainerConfig
    plan: Plan
    world: World
    optimizer: Optimizer
    hooks: Hooks

    def __call__(self, step: int) -> Metrics:
        """Do step number `step` (from 0), and return its metrics, equal on all ranks."""
        started = time.perf_counter()
        groups = self.plan.step_groups(step)
        objective = self._objective(step, groups)
        normalizer = objective.normalizer(groups, self.data.sizes)
        done = self._accumulate(step, objective, groups, normalizer)
        self.hooks.moving(f"step {step + 1}, sums over all ranks")
        # This is queued before the first read, so that the device is idle at both reads of the
        # step.
        clipped = clip_gradients(self.module, self.settings.max_grad_norm)
        metrics = self._reduced(done, normalizer)
        # An infinite log-ratio in a pair's favour adds no loss, but is still an error.
        for name in ("loss", *metrics):
            if not math.isfinite(metrics[name]):
                self._fail(step, groups, done, f"{name} of step {step + 1} is {metrics[name]}")
        norm = float(clipped)
        if not math.isfinite(norm):
            self._fail(step, groups, done, f"gradient norm of step {step + 1} is {norm}")
        metrics["grad_norm"] = norm
        metrics["learning_rate"] = self._update(step)
        seconds, tokens = time.perf_counter() - started, int(self.data.sizes.flat[groups].sum())
        return {
            **metrics,
            "epoch": (step + 1) / self.plan.steps_per_epoch,
            "step_seconds": seconds,
            "num_tokens": float(tokens),
            "tokens_per_second": tokens / seconds,
            "groups_per_second": len(groups) / seconds,
        }

    def _objective(self, step: int, groups: list[int]) -> Objective:
        """Return the objective with what it must know of the whole global batch."""
        return at_global_batch(
            self.objective,
            step,
            self.module,
            self.shared,
            self.data,
            groups,
            lambda: self._micro_batches(groups),
            self.world,
        )

    def _micro_batches(self, groups: list[int]) -> list[tuple[list[int], bool]]:
        return rank_micro_batches(
            groups,
            self.data.sizes,
            self.world.size,
            self.world.rank,
            self.settings.max_tokens_per_micro_batch,
            self.shared,
        )

    def _accumulate(
        self, step: int, objective: Objective, groups: list[int], normalizer: float
    ) -> list[_Done]:
        """Run backward passes over this rank's micro-batches."""
        batches = self._micro_batches(groups)
        passes: list[_Done] = []
        largest, ratios = 0.0, _FirstRatios()
        for number, (numbers, counts) in enumerate(batches):
            self.hooks.moving(f"step {step + 1}, pass {number + 1} of {len(batches)}")
            shown = [objective.view(self.data[g]) for g in numbers]
            batch = build_micro_batch(shown, self.shared).to(self.world.device)
            with gradient_sync(self.module, self.settings, last=number == len(batches) - 1):
                outputs = token_outputs(self.module, batch, objective.head)
                loss, metrics = objective.sums(outputs, batch)
                # Gradients are averaged over the workers, so the sum is scaled up to compensate.
                (loss * (self.world.size / normalizer if counts else 0.0)).backward()
            if step == 0:
                largest = max(largest, _largest_logratio(outputs.logps, batch))
                ratios = ratios.with_batch(outputs.logps, batch) if counts else ratios
            passes.append(_Done(numbers, counts, {"loss": loss.detach(), **metrics}))
        if step == 0:
            self.hooks.first_step(self.world.max(largest))
            self._say_ratios(ratios)
        return passes

    def _say_ratios(self, own: _FirstRatios) -> None:
        tokens, total = self.world.sum([float(own.tokens), own.total_nats])
        largest = self.world.max(own.largest_nats)
        if tokens:
            self.hooks.first_ratios(int(tokens), total, largest)

    def _reduced(self, passes: list[_Done], normalizer: float) -> Metrics:
        """Return means over the global batch, whichever rank a micro-batch was on."""
        # A rank without a micro-batch of its own still has every name, because all ranks sum them.
        names = sorted(passes[0].sums)
        rows = [torch.stack([done.sums[name].double() for name in names]) for done in passes]
        counted = torch.tensor([[float(done.counts)] for done in passes], dtype=torch.float64)
        # All sums are read from the device at once: each read waits for all work queued there.
        own = torch.where(counted > 0, torch.stack(rows).cpu(), 0.0).sum(0)
        totals = self.world.sum(own.tolist())
        return {name: total / normalizer for name, total in zip(names, totals, strict=True)}

    def _update(self, step: int) -> float:
        rate = learning_rate(
            step,
            self.plan.total_steps,
            self.settings.learning_rate,
            self.settings.schedule,
            self.settings.warmup_fraction,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _fail(self, step: int, groups: list[int], passes: list[_Done], what: str) -> None:
        """Stop on every rank before anything is updated; `passes` are this rank's."""
        bad = [
            group
            for done in passes
            if done.counts and not all(math.isfinite(value.item()) for value in done.sums.values())
            for group in done.groups
        ]
        culprits = self.world.gather([self.data[g].group_id for g in bad])
        failure = Failure(
            step + 1,
            [self.data[g].group_id for g in groups],
            {rank: names for rank, names in enumerate(culprits) if names},
        )
        self.hooks.failed(failure)
        suspects = [name for names in culprits for name in names] or failure.groups
        raise NumericsError(
            f"the {what}",
            "it is finite; nothing was updated and no checkpoint was written",
            f"look at the step's groups (first: {suspects[:3]}), lower learning_rate, "
            "or set max_grad_norm",
        )


@dataclass(frozen=True)
class _FirstRatios:
    """How far policy and sampler differ: number of tokens, sum and maximum, in nats."""

    tokens: int = 0
    total_nats: float = 0.0
    largest_nats: float = 0.0

    def with_batch(self, logps: torch.Tensor, batch: MicroBatch) -> _FirstRatios:
        """Return it with the tokens of a micro-batch; the same without log-probs of a sampler."""
        if batch.sampler_token_logps is None:
            return self
        apart = (logps.detach() - batch.sampler_token_logps).abs()
        return _FirstRatios(
            self.tokens + len(apart),
            self.total_nats + apart.double().sum().item(),
            max(self.largest_nats, apart.max().item()),
        )


def _largest_logratio(logps: torch.Tensor, batch: MicroBatch) -> float:
    if batch.reference_token_logps is None:
        return 0.0
    return (logps.detach() - batch.reference_token_logps).abs().max().item()
