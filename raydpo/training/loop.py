"""The train loop, for preferences and for supervised fine-tuning alike.

What comes in: a model, groups, an objective, settings, and hooks that say where metrics
and checkpoints go. What goes out: trained parameters in the module. It needs no Ray: run
it under plain `python`, or under any launcher that starts a process group.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from raydpo.config import TrainerConfig
from raydpo.errors import NumericsError
from raydpo.training.batch import MicroBatch, build_micro_batch
from raydpo.training.checkpoints import load_checkpoint, save_checkpoint
from raydpo.training.composition import Plan, rank_micro_batches
from raydpo.training.groups import GroupDataset
from raydpo.training.logps import TokenLogps, token_outputs
from raydpo.training.objectives import Objective
from raydpo.training.schedule import learning_rate
from raydpo.training.sharding import World, clip_gradients, gradient_sync, parallelize

Metrics = dict[str, float]


@dataclass(frozen=True)
class Hooks:
    """Where the loop's results go.

    Attributes:
        log: called on every rank after each step with the step (from 1) and its metrics.
        checkpoint: called on every rank with metrics and a function that writes this
            rank's share of a checkpoint into a folder.
        first_step: called on every rank before the first update with the largest logratio of
            a token, over all ranks.
        failed: called before a non-finite loss stops the run, with the step and its groups.
    """

    log: Callable[[int, Metrics], None]
    checkpoint: Callable[[int, Metrics, Callable[[Path], None]], None]
    first_step: Callable[[float], None]
    failed: Callable[[int, list[str]], None]


def train(
    module: TokenLogps,
    data: GroupDataset,
    objective: Objective,
    settings: TrainerConfig,
    plan: Plan,
    world: World,
    hooks: Hooks,
    resume_from: Path | None = None,
) -> nn.Module:
    """Train to the end of the plan; returns the (possibly wrapped) module.

    Every rank calls this with the same arguments, but for `world`.

    Raises:
        NumericsError: a loss or gradient is not finite; no rank has updated anything.
    """
    module.eval()  # no dropout: the reference has none either, and step 0 must show none
    wrapped = parallelize(module, settings.strategy, world, settings.activation_checkpointing)
    optimizer = _optimizer(wrapped, settings)
    start = load_checkpoint(resume_from, wrapped, optimizer) if resume_from else 0
    step = Step(wrapped, module.shared, data, objective, settings, plan, world, optimizer, hooks)
    for index in range(start, plan.total_steps):
        metrics = step(index)
        hooks.log(index + 1, metrics)
        last = index + 1 == plan.total_steps
        if last or (index + 1) % settings.checkpoint_every_steps == 0:
            done = index + 1
            hooks.checkpoint(
                done,
                metrics,
                lambda folder, done=done: save_checkpoint(folder, wrapped, optimizer, done),
            )
    return wrapped


@dataclass(frozen=True)
class Step:
    """One optimizer update over the global batch.

    `shared` is the layout that the module takes: prompts computed once, or padded rows.
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
        """Do step number `step` (from 0); returns its metrics, equal on all ranks."""
        started = time.perf_counter()
        groups = self.plan.step_groups(step)
        normalizer = self.objective.normalizer(groups, self.data.sizes)
        sums = self._accumulate(step, groups, normalizer)
        metrics = self._reduced(sums, normalizer)
        if not math.isfinite(metrics["loss"]):
            self._fail(step, groups, "loss", metrics["loss"])
        metrics["grad_norm"] = clip_gradients(self.module, self.settings.max_grad_norm)
        if not math.isfinite(metrics["grad_norm"]):
            self._fail(step, groups, "gradient norm", metrics["grad_norm"])
        metrics["learning_rate"] = self._update(step)
        seconds = time.perf_counter() - started
        return {
            **metrics,
            "epoch": (step + 1) / self.plan.steps_per_epoch,
            "step_seconds": seconds,
            "num_tokens": float(self.data.sizes.tokens[groups].sum()),
            "groups_per_second": len(groups) / seconds,
        }

    def _accumulate(self, step: int, groups: list[int], normalizer: float) -> dict[str, float]:
        """Backward passes over this rank's micro-batches; returns this rank's sums."""
        batches = rank_micro_batches(
            groups,
            self.data.sizes,
            self.world.size,
            self.world.rank,
            self.settings.max_tokens_per_micro_batch,
            self.shared,
        )
        sums: dict[str, float] = {"loss": 0.0}
        largest = 0.0
        for number, (numbers, counts) in enumerate(batches):
            batch = build_micro_batch([self.data[g] for g in numbers], self.shared)
            batch = batch.to(self.world.device)
            with gradient_sync(self.module, number == len(batches) - 1):
                outputs = token_outputs(self.module, batch, self.objective.head)
                loss, metrics = self.objective.sums(outputs, batch)
                # Gradients are averaged over the workers, so the sum is scaled back up.
                (loss * (self.world.size / normalizer if counts else 0.0)).backward()
            if step == 0:
                largest = max(largest, _largest_logratio(outputs.logps, batch))
            # A rank without a micro-batch of its own still has every name: all ranks sum them.
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + (value.item() if counts else 0.0)
        if step == 0:
            self.hooks.first_step(self.world.max(largest))
        return sums

    def _reduced(self, sums: dict[str, float], normalizer: float) -> Metrics:
        """Mean over the global batch, whatever rank a micro-batch was on."""
        names = sorted(sums)
        totals = self.world.sum([sums[name] for name in names])
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

    def _fail(self, step: int, groups: list[int], what: str, value: float) -> None:
        names = [self.data[g].group_id for g in groups]
        self.hooks.failed(step + 1, names)
        raise NumericsError(
            f"the {what} of step {step + 1} is {value}",
            "it is finite; nothing was updated and no checkpoint was written",
            f"look at the step's groups (first: {names[:3]}), lower learning_rate, "
            "or set max_grad_norm",
        )


def _optimizer(module: nn.Module, settings: TrainerConfig) -> AdamW:
    """AdamW; vectors (norms, biases) are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
    )


def _largest_logratio(logps: torch.Tensor, batch: MicroBatch) -> float:
    if batch.reference_token_logps is None:
        return 0.0
    return (logps.detach() - batch.reference_token_logps).abs().max().item()
