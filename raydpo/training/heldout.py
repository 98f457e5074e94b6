"""Measure the module in training on groups that training leaves out, without gradients.

The trained layout, sharded or not, and the objective's own sums over the held-out groups give one
`Evaluation`. All held-out groups together count as one global batch. Each group's sums are kept
apart and are added in the order of the groups. So means depend neither on micro-batches nor on the
number of workers, but for the rounding of the forward pass.

Shapes: G held-out groups, N completion tokens of a micro-batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from raydpo.config.job import EarlyStoppingConfig, TrainerConfig
from raydpo.core.errors import ConfigError, NumericsError
from raydpo.core.metric_names import HELDOUT
from raydpo.training.batch import build_micro_batch
from raydpo.training.composition import rank_micro_batches
from raydpo.training.groups import Group, GroupDataset
from raydpo.training.head import TokenOutputs
from raydpo.training.logps import token_outputs
from raydpo.training.objectives import Objective, SftObjective
from raydpo.training.sharding import World
from raydpo.training.stopping import Best, before_training
from raydpo.training.survey import at_global_batch

#: Groups that are divided into micro-batches together; the division takes longer than linear time.
_CHUNK_GROUPS: Final = 512
#: Value of a checkpoint that says which ones to keep: the step of each new best, -1 for all others.
CHECKPOINT_RANK: Final = "checkpoint_rank"
PERPLEXITY: Final = "perplexity"


@dataclass(frozen=True)
class Evaluation:
    """The values of all held-out groups after a step.

    Attributes:
        step: number of steps done; 0 before training.
        sums: name of the metric -> [G], sums over each group's units, times their weights.
        weights: [G], the groups' shares of the normalizer: a mean is sum(sums) / sum(weights).
        prompts: [G], hash of each group's prompt; groups of one prompt are not independent.
        is_likelihood: whether the loss is a mean of negative log-likelihood per token, in nats.
    """

    step: int
    sums: dict[str, list[float]]
    weights: list[float]
    prompts: list[str]
    is_likelihood: bool = False

    @property
    def means(self) -> dict[str, float]:
        """The mean over the held-out data of each metric; with a likelihood also the perplexity."""
        total = math.fsum(self.weights)
        means = {name: math.fsum(values) / total for name, values in self.sums.items()}
        return {**means, PERPLEXITY: math.exp(means["loss"])} if self.is_likelihood else means

    @property
    def metrics(self) -> dict[str, float]:
        """The means, under the names that they have in metrics.jsonl."""
        return {f"{HELDOUT}{name}": value for name, value in self.means.items()}


@dataclass(frozen=True)
class Evaluator:
    """Measures a module; every rank calls it at the same steps.

    Attributes:
        module: what `parallelize` returned.
        shared: whether it takes the shared layout.
        data: the held-out groups.
        objective: the objective of the training.
        settings: the section of the training, for the budget of a micro-batch.
        world: the ranks.
        moving: called with a description of each next action.
    """

    module: nn.Module
    shared: bool
    data: GroupDataset
    objective: Objective
    settings: TrainerConfig
    world: World
    moving: Callable[[str], None]

    @torch.no_grad()
    def __call__(self, step: int) -> Evaluation:
        """Measure the module after `step` steps; the result is equal on all ranks.

        Raises:
            NumericsError: a mean is not finite.
        """
        groups = list(range(len(self.data)))
        batches = self._micro_batches(groups)
        # Random draws of an objective are those of step 0 in each measurement, to compare them.
        objective = at_global_batch(
            self.objective,
            0,
            self.module,
            self.shared,
            self.data,
            groups,
            lambda: batches,
            self.world,
        )
        own: dict[str, list[float]] = {}
        for number, (numbers, counts) in enumerate(batches):
            self.moving(f"held-out data after step {step}, pass {number + 1} of {len(batches)}")
            for group, sums in zip(numbers, self._by_group(objective, numbers), strict=True):
                for name, value in sums.items():
                    values = own.setdefault(name, [0.0] * len(groups))
                    if counts:
                        values[group] = value
        names = sorted(own)
        flat = self.world.sum([value for name in names for value in own[name]])
        size = len(groups)
        found = Evaluation(
            step=step,
            sums={name: flat[i * size : (i + 1) * size] for i, name in enumerate(names)},
            weights=_weights(objective, self.data),
            prompts=[_prompt(self.data[group]) for group in groups],
            is_likelihood=isinstance(self.objective, SftObjective),
        )
        _refuse_non_finite(found, self.data)
        return found

    def _micro_batches(self, groups: list[int]) -> list[tuple[list[int], bool]]:
        batches: list[tuple[list[int], bool]] = []
        for start in range(0, len(groups), _CHUNK_GROUPS):
            chunk = groups[start : start + _CHUNK_GROUPS]
            batches += rank_micro_batches(
                chunk,
                self.data.sizes,
                self.world.size,
                self.world.rank,
                self.settings.max_tokens_per_micro_batch,
                self.shared,
            )
        return batches

    def _by_group(self, objective: Objective, numbers: list[int]) -> Iterator[dict[str, float]]:
        """Yield the objective's sums of each group, from one forward pass over all of them."""
        groups = [objective.view(self.data[number]) for number in numbers]
        batch = build_micro_batch(groups, self.shared).to(self.world.device)
        outputs = _on_cpu(token_outputs(self.module, batch, objective.head))
        start = 0
        for group in groups:
            end = start + sum(len(completion) for completion in group.completions)
            loss, metrics = objective.sums(_slice(outputs, start, end), build_micro_batch([group]))
            yield {name: value.item() for name, value in {"loss": loss, **metrics}.items()}
            start = end


@dataclass
class Watch:
    """The measurements of one training: when they are due, which is best, and when it stops.

    Attributes:
        evaluate: measures the module; None if nothing is held out.
        settings: the section of the training.
        total_steps: steps of the whole training.
        best: the best measurement, with early stopping and once the first one is made.
        newest: the newest measurement of this process.
    """

    evaluate: Evaluator | None
    settings: TrainerConfig
    total_steps: int
    best: Best | None = None
    newest: Evaluation | None = field(default=None, repr=False)

    def before(self) -> dict[str, float]:
        """Measure before the first step; return the metrics, or none if nothing is held out."""
        if self.evaluate is None:
            return {}
        metrics = self._measure(0)
        if self.settings.early_stopping is not None:
            stopping = self.settings.early_stopping
            self.best = before_training(_decisive(self.newest, stopping), stopping)
        return metrics

    def after(self, step: int) -> dict[str, float]:
        """Measure after a step if that is due; return the metrics, or none."""
        every = self.settings.evaluate_every_steps
        due = step == self.total_steps or (every is not None and step % every == 0)
        if self.evaluate is None or not due:
            return {}
        metrics = self._measure(step)
        stopping = self.settings.early_stopping
        if stopping is not None and self.best is not None:
            self.best = self.best.after(step, _decisive(self.newest, stopping), stopping)
        return metrics

    @property
    def stops(self) -> bool:
        """Whether training stops before its last step."""
        stopping = self.settings.early_stopping
        return stopping is not None and self.best is not None and self.best.stops(stopping)

    def is_best(self, step: int) -> bool:
        """Return whether no measurement so far was better than that after `step`."""
        return self.best is not None and self.best.step == step

    def rank(self, step: int) -> dict[str, float]:
        """Return the value by which checkpoints are kept; none without early stopping."""
        if self.best is None:
            return {}
        return {CHECKPOINT_RANK: float(step) if self.is_best(step) else -1.0}

    def exported(self, step: int) -> Evaluation | None:
        """Return the measurement of the module as it is exported; None if nothing is held out."""
        if self.evaluate is not None and (self.newest is None or self.newest.step != step):
            self._measure(step)
        return self.newest

    def _measure(self, step: int) -> dict[str, float]:
        assert self.evaluate is not None
        self.newest = self.evaluate(step)
        return self.newest.metrics


def _decisive(evaluation: Evaluation | None, stopping: EarlyStoppingConfig) -> float:
    """Return the metric that early stopping goes by."""
    assert evaluation is not None
    if stopping.metric not in evaluation.sums:
        raise ConfigError(
            f"early_stopping.metric {stopping.metric!r}",
            f"this objective has {', '.join(sorted(evaluation.sums))}",
            "set early_stopping.metric to `loss`, which every objective has",
        )
    return evaluation.means[stopping.metric]


def _weights(objective: Objective, data: GroupDataset) -> list[float]:
    """Return each group's share of the normalizer of all groups: [G]."""
    groups = list(range(len(data)))
    shares = [objective.normalizer([group], data.sizes) for group in groups]
    # A sum of objectives has the normalizer 1, whatever the number of groups.
    scale = objective.normalizer(groups, data.sizes) / math.fsum(shares)
    return [share * scale for share in shares]


def _prompt(group: Group) -> str:
    return hashlib.sha256(repr(group.prompt_ids).encode()).hexdigest()[:16]


def _on_cpu(outputs: TokenOutputs) -> TokenOutputs:
    return _each(outputs, lambda values: values.cpu())


def _slice(outputs: TokenOutputs, start: int, end: int) -> TokenOutputs:
    return _each(outputs, lambda values: values[start:end])


def _each(outputs: TokenOutputs, change: Callable[[Tensor], Tensor]) -> TokenOutputs:
    """Apply a function to all fields that were requested."""
    changed: dict[str, Any] = {
        name: None if values is None else change(values) for name, values in vars(outputs).items()
    }
    return TokenOutputs(**changed)


def _refuse_non_finite(evaluation: Evaluation, data: GroupDataset) -> None:
    for name, values in evaluation.sums.items():
        bad = [number for number, value in enumerate(values) if not math.isfinite(value)]
        if bad:
            raise NumericsError(
                f"on held-out data, {name} after step {evaluation.step} is not finite in "
                f"{len(bad)} of {len(values)} groups",
                "it is finite in every group",
                f"look at these groups (first: {[data[g].group_id for g in bad[:3]]}), or lower "
                "learning_rate",
            )
