"""Run an objective as training does: section, `make_objective`, train step.

From a mapping `training.objective`, the size of micro-batches and the number of workers, it
returns the step's metrics, and the gradient by every token. The model is a table: its parameters
are the log-probs (and logits and divergences) of tokens, which never repeat in the data.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.config.job import TrainingConfig
from raydpo.training.batch import MicroBatch
from raydpo.training.composition import Plan
from raydpo.training.groups import GroupDataset, write_groups
from raydpo.training.head import HeadRequest
from raydpo.training.loop import Hooks, Step
from raydpo.training.objectives import Objective, SftObjective, make_objective
from raydpo.training.sharding import World
from tests.conformance.batch_formulas import Batch, Place
from tests.conformance.preference_data import DATA, PAIRED, Data
from tests.conformance.sections import FINE_TUNING, USUAL_STEP, Section

SEED = 5
#: Cuts the step into micro-batches of more groups than one; of two workers one has a micro-batch less.
MICRO_BATCH_TOKENS = 36
PLAN = Plan(groups=len(PAIRED.rows), global_batch_groups=4, epochs=2, max_steps=None, seed=SEED)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    """What a step computed: its metrics, and gradients other than 0 by place; what it asked the model for."""

    metrics: dict[str, float]
    gradient: dict[Place, float]
    request: HeadRequest


class TablePolicy(nn.Module):
    """Looks up what it says of a token."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        for name in ("logps", "kl", "target_logits", "top_logits"):
            values = torch.tensor(getattr(data.tables, name), dtype=torch.float32)
            self.register_parameter(name, nn.Parameter(values))
        self.request = HeadRequest()

    def forward(self, batch: MicroBatch, request: HeadRequest) -> tuple[Tensor | None, ...]:
        """The fields of `TokenOutputs`, of which there are no more than were asked for."""
        self.request = request  # the last one is that of training
        logits = self.target_logits[batch.targets] if request.top_k else None
        top = self.top_logits[batch.targets, : request.top_k] if request.top_k else None
        kl = self.kl[batch.targets] if request.reference_kl else None
        return self.logps[batch.targets], logits, top, kl


class WatchedStep(Step):
    """Looks whether what is kept of a micro-batch holds its graph, and so its memory."""

    def _reduced(self, passes: list[Any], normalizer: float) -> dict[str, float]:
        kept = [value for done in passes for value in done.sums.values()]
        assert not any(value.requires_grad for value in kept)
        return super()._reduced(passes, normalizer)


class KeepsGradients(torch.optim.Optimizer):
    """Updates nothing, and keeps what it was given."""

    def __init__(self, policy: TablePolicy) -> None:
        super().__init__(policy.parameters(), {"lr": 1.0})
        self.policy = policy
        self.kept: dict[str, Tensor] = {}

    def step(self, closure: Any = None) -> None:
        """Keep the gradients."""
        parameters = self.policy.named_parameters()
        self.kept = {name: p.grad.clone() for name, p in parameters if p.grad is not None}


@dataclass(frozen=True)
class ThreadWorld(World):
    """A worker in a thread of its own; all of them meet at `barrier`."""

    barrier: threading.Barrier
    values: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    def sum(self, values: list[float]) -> list[float]:
        """Sum each value over all workers."""
        return [sum(column) for column in zip(*self._all(values), strict=True)]

    def max(self, value: float) -> float:
        """The largest of all workers' values."""
        return max(row[0] for row in self._all([value]))

    def _all(self, values: list[float]) -> list[list[float]]:
        self.values[self.rank] = values
        self.barrier.wait()
        found = [self.values[rank] for rank in range(self.size)]
        self.barrier.wait()
        return found


def data_of(section: Section) -> Data:
    """What the objective learns from."""
    first = section["terms"][0]["objective"] if section["name"] == "sum" else section
    return DATA[_kind_of(first["name"])]


def _kind_of(name: str) -> str:
    return {"kto": "unpaired", "policy_gradient": "sampled"}.get(name, "paired")


def batch_of(section: Section, step: int) -> Batch:
    """The rows of a step, for the formulas."""
    data = data_of(section)
    rows = {number: data.rows[number] for number in PLAN.step_groups(step)}
    return Batch(rows, data.tables, SEED, step)


def trained(
    section: Section,
    tokens: int = MICRO_BATCH_TOKENS,
    workers: int = 1,
    step: int = USUAL_STEP,
    shared: bool = False,
) -> Result:
    """One train step.

    Args:
        section: `training.objective`, as YAML gives it.
        tokens: of a micro-batch at most, unless one group has more.
        workers: that share the step.
        step: its number, from 0.
        shared: whether prompts are laid out once for all their completions.
    """
    if workers == 1:
        return _of_worker(section, tokens, World(0, 1, CPU), step, shared)
    barrier, values = threading.Barrier(workers, timeout=60), {}
    found: dict[int, Result] = {}
    failures: list[Exception] = []

    def work(rank: int) -> None:
        try:
            world = ThreadWorld(rank, workers, CPU, barrier, values)
            found[rank] = _of_worker(section, tokens, world, step, shared)
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return _averaged(found)


def _averaged(found: dict[int, Result]) -> Result:
    """As DDP does: gradients are averaged over the workers. Metrics are equal on all of them."""
    metrics = [
        {k: v for k, v in result.metrics.items() if not _is_timing(k)} for result in found.values()
    ]
    gradient: dict[Place, float] = {}
    for result in found.values():
        for place, value in result.gradient.items():
            gradient[place] = gradient.get(place, 0.0) + value / len(found)
    # The norm is of a worker's own gradient, since nothing wraps the module here.
    for values in metrics:
        values.pop("grad_norm")
    assert all(values == metrics[0] for values in metrics)
    return Result(metrics[0], gradient, found[0].request)


def _is_timing(name: str) -> bool:
    return name == "step_seconds" or name.endswith("per_second")


def _of_worker(section: Section, tokens: int, world: World, step: int, shared: bool) -> Result:
    settings, objective = _objective(section)
    policy = TablePolicy(data_of(section))
    optimizer = KeepsGradients(policy)
    train_step = WatchedStep(
        module=policy,
        shared=shared,
        data=dataset(next(kind for kind, data in DATA.items() if data is data_of(section))),
        objective=objective,
        settings=settings.model_copy(update={"max_tokens_per_micro_batch": tokens}),
        plan=PLAN,
        world=world,
        optimizer=optimizer,
        hooks=Hooks(_nothing, _nothing, _nothing, _nothing),
    )
    metrics = train_step(step)
    return Result(metrics, _by_place(optimizer.kept), policy.request)


def _objective(section: Section) -> tuple[TrainingConfig, Objective]:
    """As a worker makes it from the configuration."""
    rest: dict[str, Any] = {"max_grad_norm": None}
    if section == FINE_TUNING:
        return TrainingConfig.model_validate(rest), SftObjective()
    settings = TrainingConfig.model_validate({"objective": section, **rest})
    return settings, make_objective(settings.objective, SEED)


def _nothing(*_: Any) -> Callable[[], None]:
    return lambda: None


def dataset(kind: str) -> GroupDataset:
    """The groups of `DATA` as training reads them."""
    return GroupDataset(_written(kind))


@cache
def _written(kind: str) -> Path:
    rows = DATA[kind].rows
    return write_groups(rows, hashlib.sha256(repr(rows).encode()).hexdigest())


def _by_place(gradients: dict[str, Tensor]) -> dict[Place, float]:
    found: dict[Place, float] = {}
    for table, gradient in gradients.items():
        rows = gradient.reshape(len(gradient), -1)
        for token, column in rows.nonzero().tolist():
            found[table, token, column] = rows[token, column].item()
    return found
