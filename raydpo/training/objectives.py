"""Define what a train step minimises: turn token outputs into a loss sum and metric sums.

The section `training.objective` gives the objective, which reads the `TokenOutputs` of
micro-batches. It returns sums over a micro-batch, not means. The loop divides them by the
normalizer of the whole global batch. So the division into micro-batches and workers does not change
the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from raydpo.config import objectives as sections
from raydpo.training.batch import MicroBatch
from raydpo.training.groups import Group, GroupSizes
from raydpo.training.head import HeadRequest, TokenOutputs
from raydpo.training.losses.anchors import sft_term
from raydpo.training.measures.cringe import cringe_measure
from raydpo.training.measures.pairs import (
    likelihood_measure,
    logratio_measure,
    reference_free_measure,
    tdpo_measure,
)
from raydpo.training.measures.policy_gradient import policy_gradient_measure
from raydpo.training.measures.rankings import ranking_measure
from raydpo.training.measures.rewards import reward_measure
from raydpo.training.measures.surveyed import (
    aot_measure,
    bco_measure,
    judged_completions,
    kto_measure,
    mismatched_completions,
)
from raydpo.training.measures.values import GlobalBatch, Measure, Values

Sums = tuple[Tensor, dict[str, Tensor]]


class Objective(Protocol):
    """A loss over micro-batches."""

    @property
    def head(self) -> HeadRequest:
        """The outputs that each completion token needs in addition to its log-prob."""
        ...

    def surveyed(self, group: Group) -> list[int]:
        """Return the completions whose log-probs a step needs for the whole batch in advance."""
        ...

    def view(self, group: Group) -> Group:
        """Return the part of a group that is trained on."""
        ...

    def at_step(self, known: GlobalBatch) -> Objective:
        """Return the objective of one step."""
        ...

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """Return the divisor of the loss sum of these groups, which form the global batch."""
        ...

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> Sums:
        """Return the loss summed over the micro-batch, and metrics summed over it (detached)."""
        ...


def make_objective(settings: sections.Objective, seed: int = 0) -> Objective:
    """Build the objective of a section.

    Args:
        settings: the section `training.objective`.
        seed: the run's seed, for objectives that draw random numbers.
    """
    if isinstance(settings, sections.SumObjective):
        terms = [(t.weight, PreferenceObjective(t.objective, seed)) for t in settings.terms]
        return SumOfObjectives(tuple(terms))
    return PreferenceObjective(settings, seed)


@dataclass(frozen=True)
class PreferenceObjective:
    """One objective: the weighted mean over all units of the global batch that it learns from.

    Attributes:
        settings: the objective's section.
        seed: the run's seed.
        known: the facts about the step.
    """

    settings: sections.SingleObjective
    seed: int = 0
    known: GlobalBatch | None = None

    @property
    def head(self) -> HeadRequest:
        """Top logits for Cringe, and the reference's KL for TDPO."""
        settings = self.settings
        top_k = settings.top_k if isinstance(settings, sections.CringeObjective) else 0
        return HeadRequest(top_k=top_k, reference_kl=settings.uses_live_reference)

    def surveyed(self, group: Group) -> list[int]:
        """Return mismatched ones for KTO's reference point, all for AOT's order and BCO's mean."""
        match self.settings:
            case sections.KtoObjective():
                return mismatched_completions(group)
            case sections.AotObjective() | sections.BcoObjective(reward_shift="batch_mean"):
                return list(range(len(group.completions)))
            case _:
                return []

    def view(self, group: Group) -> Group:
        """Return the group, or for unpaired data only its judged completions."""
        return judged_completions(group) if self.settings.unit == "completions" else group

    def at_step(self, known: GlobalBatch) -> PreferenceObjective:
        """Return the objective with what is known of the step."""
        return replace(self, known=known)

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """Return the sum of the pairs' weights, or the number of rankings, judgements or samples."""
        match self.settings.unit:
            case "pairs":
                return float(sizes.pair_weight[groups].sum())
            case "rankings":
                return float(sizes.rankings[groups].sum())
            case "completions":
                return float(sizes.judged[groups].sum())
            case "samples":
                return _samples(self.settings, groups, sizes)

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> Sums:
        """Return the weighted loss sum, and sums of TRL's metrics."""
        values = self._measure(outputs, batch)
        losses, metrics = values.losses, values.metrics
        if self.settings.sft_weight:
            anchor = _anchor(values, outputs, batch)
            losses = losses + self.settings.sft_weight * anchor
            metrics = {**metrics, "nll_loss": anchor.detach()}
        weighted = {name: (values.weights * value).sum() for name, value in metrics.items()}
        return (values.weights * losses).sum(), weighted

    @cached_property
    def _measure(self) -> Measure:
        return measure_of(self.settings, self.seed, self.known)


def measure_of(settings: sections.SingleObjective, seed: int, known: GlobalBatch | None) -> Measure:
    """Return the measure of a section, in the step of `known`."""
    match settings:
        case sections.KtoObjective():
            assert known is not None, "KTO reads the whole global batch"
            return kto_measure(settings, known)
        case sections.AotObjective():
            assert known is not None, "AOT reads the whole global batch"
            return aot_measure(settings, known)
        case sections.BcoObjective():
            return bco_measure(settings, known)
        case sections.BinaryCringeObjective() | sections.PairwiseCringeObjective():
            assert known is not None, "Cringe draws anew in each step"
            return cringe_measure(settings, seed, known.step)
        case sections.PolicyGradientObjective():
            assert known is not None, "policy gradient reads sums over the global batch"
            return policy_gradient_measure(settings, known)
        case sections.RewardModelObjective():
            return reward_measure(settings)
        case sections.TdpoObjective():
            return tdpo_measure(settings)
        case sections.SimpoObjective() | sections.OrpoObjective():
            return reference_free_measure(settings)
        case sections.PreferredSftObjective() | sections.UnlikelihoodObjective():
            return likelihood_measure(settings)
        case sections.PlackettLuceObjective() | sections.BestOfKObjective():
            return ranking_measure(settings)
        case sections.LogratioObjective():
            return logratio_measure(settings)


@dataclass(frozen=True)
class SumOfObjectives:
    """A weighted sum of objectives, each the mean over its own units of the global batch.

    Attributes:
        terms: the weights and objectives.
        normalizers: the normalizers of the terms in this step.
    """

    terms: tuple[tuple[float, PreferenceObjective], ...]
    normalizers: tuple[float, ...] = ()

    @property
    def head(self) -> HeadRequest:
        """The outputs that all terms together need."""
        heads = [term.head for _, term in self.terms]
        return HeadRequest(
            top_k=max(head.top_k for head in heads),
            reference_kl=any(head.reference_kl for head in heads),
        )

    def surveyed(self, group: Group) -> list[int]:
        """Return the completions that any term needs."""
        return sorted({index for _, term in self.terms for index in term.surveyed(group)})

    def view(self, group: Group) -> Group:
        """Return what the terms are trained on; all terms learn from the same data."""
        return self.terms[0][1].view(group)

    def at_step(self, known: GlobalBatch) -> SumOfObjectives:
        """Return the terms with what is known of the step."""
        terms = tuple((weight, term.at_step(known)) for weight, term in self.terms)
        normalizers = tuple(term.normalizer(known.numbers, known.sizes) for _, term in terms)
        return SumOfObjectives(terms, normalizers)

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """Return 1, because each term has its own normalizer."""
        return 1.0

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> Sums:
        """Sum the terms' weighted means; metrics are the first term's, and each term's loss."""
        total = outputs.logps.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for (weight, term), normalizer in zip(self.terms, self.normalizers, strict=True):
            loss, values = term.sums(outputs, batch)
            total = total + weight * loss / normalizer
            means = {f"loss/{term.settings.name}": loss.detach() / normalizer}
            means |= {name: value / normalizer for name, value in values.items()}
            metrics = {**means, **metrics}
        return total, metrics


@dataclass(frozen=True)
class SftObjective:
    """Next-token cross-entropy: the mean over all target tokens of the global batch."""

    @property
    def head(self) -> HeadRequest:
        """Log-probs alone, without further outputs."""
        return HeadRequest()

    def surveyed(self, group: Group) -> list[int]:
        """Return nothing, because no survey is needed."""
        return []

    def view(self, group: Group) -> Group:
        """Return the whole group."""
        return group

    def at_step(self, known: GlobalBatch) -> SftObjective:
        """Return the same objective, because all steps are alike."""
        return self

    def normalizer(self, groups: list[int], sizes: GroupSizes) -> float:
        """Return the number of target tokens."""
        return float(sizes.targets[groups].sum())

    def sums(self, outputs: TokenOutputs, batch: MicroBatch) -> Sums:
        """Return the summed negative log-likelihood, without further metrics."""
        return -outputs.logps.sum(), {}


def _samples(settings: sections.SingleObjective, groups: list[int], sizes: GroupSizes) -> float:
    """Return what a policy gradient is a mean over: the number of completions, or of their tokens."""
    assert isinstance(settings, sections.PolicyGradientObjective)
    counted = sizes.targets if settings.loss_per == "token" else sizes.sequences
    return float(counted[groups].sum())


def _anchor(values: Values, outputs: TokenOutputs, batch: MicroBatch) -> Tensor:
    """Return the cross-entropy per token of the preferred completion, [U]; 0 if there is none."""
    there = values.preferred >= 0
    sequences = values.preferred.clamp(min=0)
    logps = batch.sequence_sums(outputs.logps)[sequences]
    term = sft_term(logps, batch.sequence_lengths[sequences])
    return torch.where(there, term, 0.0)
