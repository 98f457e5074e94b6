"""The results of a measure, and what it may know about the whole global batch in advance.

From `TokenOutputs` and a `MicroBatch` a measure computes `Values`, one for each unit that the
objective learns from. A measure sees only its micro-batch; `GlobalBatch` holds what depends on
the rest of the global batch.

Shapes: U units (pairs, rankings or judged completions), R sequences, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from torch import Tensor

from raydpo.config.objective_base import Length, LengthDesensitized
from raydpo.training.batch import MicroBatch
from raydpo.training.groups import Group, GroupSizes
from raydpo.training.head import TokenOutputs
from raydpo.training.losses.length import length_desensitized_sums, per_token_means


@dataclass(frozen=True)
class Values:
    """The values of each unit of a micro-batch.

    Attributes:
        losses: [U].
        weights: [U], the unit's share in the mean.
        preferred: [U] int64, the sequence that an SFT term makes more likely; -1 for none.
        metrics: name -> [U], detached.
    """

    losses: Tensor
    weights: Tensor
    preferred: Tensor
    metrics: dict[str, Tensor]


Measure = Callable[[TokenOutputs, MicroBatch], Values]


@dataclass(frozen=True)
class GlobalBatch:
    """Facts about a step that are known before any of its micro-batches is trained on.

    Attributes:
        step: the number of the step, from 0.
        numbers: the numbers of the step's groups.
        sizes: the sizes of all groups.
        groups: the groups themselves, for objectives that ask for a survey; else empty.
        logps: group number -> policy log-prob of each completion, nats; else empty, like `groups`.
    """

    step: int
    numbers: list[int]
    sizes: GroupSizes
    groups: list[Group] = field(default_factory=list[Group])
    logps: dict[int, list[float]] = field(default_factory=dict[int, list[float]])


def token_logratios(outputs: TokenOutputs, batch: MicroBatch) -> Tensor:
    """Return log pi - log pi_ref per completion token, [N], subtracted so for precision."""
    assert batch.reference_token_logps is not None, "this objective needs a reference"
    return outputs.logps - batch.reference_token_logps


def mean_logps(outputs: TokenOutputs, batch: MicroBatch) -> Tensor:
    """Return log pi(y|x) / |y|, nats per token: [R]."""
    return per_token_means(batch.sequence_sums(outputs.logps), batch.sequence_lengths)


def pair_sums(token_values: Tensor, batch: MicroBatch, length: Length) -> tuple[Tensor, Tensor]:
    """Combine token values into values of each pair's chosen and rejected: [P], [P]."""
    if isinstance(length, LengthDesensitized):
        return length_desensitized_sums(
            token_values,
            batch.sequences,
            batch.sequence_lengths,
            batch.pairs,
            alpha=length.ld_alpha,
        )
    sums = sequence_values(token_values, batch, length)
    chosen, rejected = batch.pairs.unbind(1)
    return sums[chosen], sums[rejected]


def sequence_values(token_values: Tensor, batch: MicroBatch, length: Length) -> Tensor:
    """Return sums over a completion's tokens, or means: [R]."""
    sums = batch.sequence_sums(token_values)
    match length:
        case "mean":
            return per_token_means(sums, batch.sequence_lengths)
        case "sum" | LengthDesensitized():  # the latter weights tokens pair by pair
            return sums
        case _:
            assert_never(length)


def pair_metrics(
    chosen_rewards: Tensor, rejected_rewards: Tensor, outputs: TokenOutputs, batch: MicroBatch
) -> dict[str, Tensor]:
    """Compute TRL's metrics of each pair: [P]."""
    margins = (chosen_rewards - rejected_rewards).detach()
    return {
        "rewards/chosen": chosen_rewards.detach(),
        "rewards/rejected": rejected_rewards.detach(),
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
        **pair_logps(outputs, batch),
    }


def pair_logps(outputs: TokenOutputs, batch: MicroBatch) -> dict[str, Tensor]:
    """Return log-probs of each pair's completions: [P]."""
    logps = batch.sequence_sums(outputs.logps.detach())
    chosen, rejected = batch.pairs.unbind(1)
    return {"logps/chosen": logps[chosen], "logps/rejected": logps[rejected]}
