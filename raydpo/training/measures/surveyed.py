"""Objectives that need the whole global batch before any micro-batch: KTO, AOT, BCO.

A `GlobalBatch` has the policy's log-probs of all its completions, from a pass without gradient. The
sums of the resulting `Measure` over the micro-batches give the loss and gradient of the whole
batch, however workers divide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, assert_never

import torch
from torch import Tensor

from raydpo.config import objectives as sections
from raydpo.training.batch import MicroBatch
from raydpo.training.groups import Group
from raydpo.training.head import TokenOutputs
from raydpo.training.losses.aot import matched_by_rank
from raydpo.training.losses.contrastive import bco_loss
from raydpo.training.losses.dpo import conservative_loss
from raydpo.training.losses.kto import kto_loss, kto_reference_point
from raydpo.training.measures.values import (
    GlobalBatch,
    Measure,
    Values,
    pair_metrics,
    pair_sums,
    token_logratios,
)


def judged_completions(group: Group) -> Group:
    """Return an unpaired group without the other prompts' completions, which are not trained on."""
    judgements = group.desirable or []
    return group.only([i for i, judgement in enumerate(judgements) if judgement is not None])


def mismatched_completions(group: Group) -> list[int]:
    """Return the completions of an unpaired group that answer another prompt."""
    return [i for i, judgement in enumerate(group.desirable or []) if judgement is None]


def kto_measure(settings: sections.KtoObjective, known: GlobalBatch) -> Measure:
    """Build KTO's measure in one step; z0 is that of the whole global batch."""
    judgements = [j for group in known.groups for j in group.desirable or []]
    mismatched = [
        _logratio(group, index, known)
        for group in known.groups
        for index in mismatched_completions(group)
    ]
    point = kto_reference_point(torch.tensor(mismatched)).item()
    judged = [j for j in judgements if j is not None]
    shares = {side: len(judged) / max(judged.count(side), 1) for side in (True, False)}
    return partial(_measure_kto, settings, point, shares)


def _measure_kto(
    settings: sections.KtoObjective,
    reference_point: float,
    shares: dict[bool, float],
    outputs: TokenOutputs,
    batch: MicroBatch,
) -> Values:
    """Compute the loss of each judged completion, and TRL's metrics.

    `shares` are judged completions over desirable (or undesirable) ones. Scaled by them, the mean
    of a metric over all judged completions is its mean over that side.
    """
    sums = batch.sequence_sums(token_logratios(outputs, batch))
    logratios, desirable = sums[batch.judged], batch.desirable
    losses = kto_loss(
        logratios,
        desirable,
        reference_point,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )
    rewards = settings.beta * logratios.detach()
    logps = batch.sequence_sums(outputs.logps.detach())[batch.judged]
    good, bad = desirable * shares[True], ~desirable * shares[False]
    metrics = {
        "rewards/chosen": rewards * good,
        "rewards/rejected": rewards * bad,
        "rewards/margins": rewards * (good - bad),
        "logps/chosen": logps * good,
        "logps/rejected": logps * bad,
        "kl": torch.full_like(rewards, reference_point),
    }
    preferred = torch.where(desirable, batch.judged, -1)
    return Values(losses, torch.ones_like(rewards), preferred, metrics)


#: What AOT matches by rank.
Alignment = Literal["paired", "unpaired"]


@dataclass(frozen=True)
class _Matched:
    """The values of the same rank in the global batch, for each pair of a group, without gradient.

    Attributes:
        value: [p], the value that the pair's own value is compared with.
        chosen: [p], if unpaired: the chosen log-ratio with the rank of the pair's rejected one.
        chosen_weight: [p], if unpaired: the weight of the pair of that chosen log-ratio.
    """

    value: Tensor
    chosen: Tensor
    chosen_weight: Tensor


def aot_measure(settings: sections.AotObjective, known: GlobalBatch) -> Measure:
    """Build AOT's measure in one step; values are matched by rank in the whole global batch."""
    values = [row for group in known.groups for row in _pair_logps(group, known)]
    rows = torch.tensor(values, dtype=torch.float64).reshape(-1, 4)
    weights = torch.tensor([pair.weight for group in known.groups for pair in group.pairs])
    matched = _match(settings.alignment, rows, weights)
    counts = [len(group.pairs) for group in known.groups]
    numbers = [group.number for group in known.groups]
    split = zip(*(values.float().split(counts) for values in matched), strict=True)
    by_group = {n: _Matched(*values) for n, values in zip(numbers, split, strict=True)}
    return partial(_measure_aot, settings, by_group)


def _match(alignment: Alignment, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return [P] matched values, chosen values and weights for all pairs of the global batch."""
    chosen, rejected, reference_chosen, reference_rejected = rows.unbind(1)
    match alignment:
        case "paired":
            margins = chosen - rejected
            value = matched_by_rank(margins, reference_chosen - reference_rejected)
            return value, torch.zeros_like(value), torch.zeros_like(value)
        case "unpaired":
            own, other = chosen - reference_chosen, rejected - reference_rejected
            partners = own.argsort(stable=True)[other.argsort(stable=True).argsort()]
            return matched_by_rank(own, other), own[partners], weights[partners]
        case _:
            assert_never(alignment)


def _measure_aot(
    settings: sections.AotObjective,
    by_group: dict[int, _Matched],
    outputs: TokenOutputs,
    batch: MicroBatch,
) -> Values:
    found = [by_group[number] for number in batch.group_numbers.tolist()]
    device = batch.pairs.device
    value = torch.cat([one.value for one in found]).to(device)
    chosen, rejected = pair_sums(token_logratios(outputs, batch), batch, "sum")
    loss = partial(conservative_loss, beta=settings.beta, label_smoothing=settings.label_smoothing)
    if settings.alignment == "paired":
        logps = pair_sums(outputs.logps, batch, "sum")
        losses = loss(logps[0] - logps[1], value)
    else:
        partner = torch.cat([one.chosen for one in found]).to(device)
        weight = torch.cat([one.chosen_weight for one in found]).to(device)
        # A pair's loss is recorded at its chosen completion. Its rejected completion contributes
        # the gradient of another pair's loss: that loss minus its own value.
        there = weight / batch.pair_weights * loss(partner, rejected)
        losses = loss(chosen, value) + there - there.detach()
    metrics = pair_metrics(settings.beta * chosen, settings.beta * rejected, outputs, batch)
    return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)


def bco_measure(settings: sections.BcoObjective, known: GlobalBatch | None) -> Measure:
    """Build BCO's measure in one step; a shift other than 0 is that of the whole global batch.

    The paper's shift is a running mean over steps. This one depends on the step alone, so a run
    that is resumed, or divided in another way, is the same run.
    """
    match settings.reward_shift:
        case "zero":
            shift = 0.0
        case "batch_mean":
            assert known is not None, "BCO reads the whole global batch"
            shift = settings.beta * _mean_logratio(known)
        case _:
            assert_never(settings.reward_shift)
    return partial(_measure_bco, settings.beta, shift)


def _mean_logratio(known: GlobalBatch) -> float:
    """Return the mean over chosen and rejected completions of all pairs, weighted by pair."""
    pairs = [
        (pair.weight, chosen + rejected - of_chosen - of_rejected)
        for group in known.groups
        for pair, (chosen, rejected, of_chosen, of_rejected) in zip(
            group.pairs, _pair_logps(group, known), strict=True
        )
    ]
    return sum(w * both for w, both in pairs) / (2 * sum(w for w, _ in pairs))


def _measure_bco(beta: float, shift: float, outputs: TokenOutputs, batch: MicroBatch) -> Values:
    chosen, rejected = pair_sums(token_logratios(outputs, batch), batch, "sum")
    losses = bco_loss(chosen, rejected, shift, beta=beta)
    metrics = pair_metrics(beta * chosen, beta * rejected, outputs, batch)
    metrics["rewards/shift"] = losses.new_full(losses.shape, shift)
    return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)


def _logratio(group: Group, completion: int, known: GlobalBatch) -> float:
    assert group.reference_token_logps is not None, "this objective needs a reference"
    return known.logps[group.number][completion] - sum(group.reference_token_logps[completion])


def _pair_logps(group: Group, known: GlobalBatch) -> list[tuple[float, float, float, float]]:
    """Return for each pair the policy's log-probs of chosen and rejected, then the reference's."""
    assert group.reference_token_logps is not None, "this objective needs a reference"
    policy, reference = known.logps[group.number], [sum(r) for r in group.reference_token_logps]
    return [
        (policy[p.chosen], policy[p.rejected], reference[p.chosen], reference[p.rejected])
        for p in group.pairs
    ]
