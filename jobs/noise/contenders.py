"""The objectives of the noise study, each with the true rate of flipped labels.

A flip rate gives configuration sections by name, and rows of results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raydpo.config import objectives as sections
from raydpo.evaluation.metrics import Estimate, clustered_mean, paired_difference

Contender = (
    sections.DpoObjective
    | sections.ConservativeDpoObjective
    | sections.RobustDpoObjective
    | sections.OutlierMixtureObjective
    | sections.IpoObjective
    | sections.HingeObjective
)

FLIP_RATES = (0.0, 0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Result:
    """One objective at one flip rate.

    Attributes:
        setting: `exact` (a world, all labels there can be), `world` (the same, one label for
            each pair) or `model`.
        objective: its name.
        flip_rate: share of training labels that were turned round.
        right: of each pair 1 where the policy orders it as the true rewards do, 0 where not,
            one half for a tie. The same pairs for all objectives of a setting.
        prompts: the prompt of each.
        missing: on worlds, beta log Z - (E[r] - beta KL): what the policy misses of the
            most regularized reward there is; None on the model.
        scores: on the model, what the judge gives samples of the policy on held-out prompts.
        score_prompts: the prompt of each.
    """

    setting: str
    objective: str
    flip_rate: float
    right: list[float]
    prompts: list[str]
    missing: float | None = None
    scores: list[float] = field(default_factory=list[float])
    score_prompts: list[str] = field(default_factory=list[str])

    @property
    def accuracy(self) -> Estimate:
        """Share of pairs in the right order, its standard error clustered by prompt."""
        return clustered_mean(self.right, self.prompts)

    @property
    def score(self) -> Estimate:
        """Mean score of the samples, its standard error clustered by prompt."""
        return clustered_mean(self.scores, self.score_prompts)

    def gain(self, other: Result) -> Estimate:
        """Accuracy less that of another objective on the same pairs, paired."""
        differences = [ours - theirs for ours, theirs in zip(self.right, other.right, strict=True)]
        return clustered_mean(differences, self.prompts)

    def score_gain(self, other: Result) -> Estimate:
        """Score less that of another objective, paired by prompt."""
        return paired_difference(self.scores, self.score_prompts, other.scores, other.score_prompts)


def contenders(flip_rate: float, beta: float) -> dict[str, Contender]:
    """Sections by name; those that take a rate are told the true one.

    Args:
        flip_rate: the share of labels that are flipped.
        beta: strength of the KL constraint; for IPO it is tau.
    """
    return {
        "dpo": sections.DpoObjective(beta=beta),
        "cdpo": sections.ConservativeDpoObjective(
            name="cdpo", beta=beta, label_smoothing=flip_rate
        ),
        "robust": sections.RobustDpoObjective(name="robust", beta=beta, flip_rate=flip_rate),
        # A label drawn at random is a flipped one half of the time.
        "outlier_mixture": sections.OutlierMixtureObjective(
            name="outlier_mixture", beta=beta, outlier_rate=2 * flip_rate
        ),
        "ipo": sections.IpoObjective(name="ipo", tau=beta),
        "hinge": sections.HingeObjective(name="hinge", beta=beta),
    }
