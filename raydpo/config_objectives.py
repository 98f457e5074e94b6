"""The configuration of objectives: one small section each, chosen by `objective.name`.

What comes in: the mapping `training.objective`. What goes out: one frozen model, which has
the options that this objective reads and no others. Formulas and sources stand in
`training/losses/`; here each section says what the objective learns from and what it needs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raydpo.config_base import NonNegativeFloat, PositiveFloat, Section
from raydpo.config_objective_base import (
    CringeObjective,
    LogratioObjective,
    RankingObjective,
    ReferenceFreeObjective,
    ReferenceObjective,
    ScaledLogratioObjective,
    Smoothing,
    TdpoObjective,
    Unit,
)
from raydpo.config_reward_model import RewardModelObjective


class DpoObjective(ScaledLogratioObjective):
    """Direct preference optimization (arXiv:2305.18290, eq. 7)."""

    name: Literal["dpo"] = "dpo"
    """The objective."""

    @model_validator(mode="before")
    @classmethod
    def _smoothed_is_another(cls, values: Any) -> Any:
        if isinstance(values, dict) and "label_smoothing" in values:
            raise ValueError(
                "`dpo` has no `label_smoothing`: with it the loss is conservative DPO, "
                "`{name: cdpo, label_smoothing: 0.1}`"
            )
        return values


class ConservativeDpoObjective(ScaledLogratioObjective):
    """Conservative DPO (Mitchell, "A note on DPO with noisy preferences", eq. 3)."""

    name: Literal["cdpo"]
    """The objective."""
    label_smoothing: Smoothing = 0.1
    """Assumed share of wrong labels."""


class RobustDpoObjective(ScaledLogratioObjective):
    """Robust DPO (arXiv:2403.00409): unbiased under labels flipped at a known rate."""

    name: Literal["robust"]
    """The objective."""
    flip_rate: Smoothing = 0.1
    """Assumed share of flipped labels."""


class OutlierMixtureObjective(ScaledLogratioObjective):
    """A share of the labels is drawn uniformly (arXiv:1706.03741, section 2.2.3)."""

    name: Literal["outlier_mixture"]
    """The objective."""
    outlier_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Assumed share of labels that say nothing."""


class SoftLabelObjective(ScaledLogratioObjective):
    """Cross-entropy with the probability that chosen wins, from votes or rewards."""

    name: Literal["soft_label"]
    """The objective."""


class IpoObjective(LogratioObjective):
    """Identity preference optimization (arXiv:2310.12036, eq. 17)."""

    name: Literal["ipo"]
    """The objective."""
    tau: PositiveFloat = 0.1
    """Strength of the KL constraint; the margin of log-ratios goes to 1 / (2 tau)."""

    @property
    def kl_beta(self) -> float | None:
        """Tau."""
        return self.tau


class HingeObjective(ScaledLogratioObjective):
    """Hinge loss on the margin (SLiC, arXiv:2305.10425; RSO, arXiv:2309.06657)."""

    name: Literal["hinge"]
    """The objective."""


class FDpoObjective(ScaledLogratioObjective):
    """DPO under another f-divergence (arXiv:2309.16240)."""

    name: Literal["f_dpo"]
    """The objective."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "forward_kl"
    """The divergence of policy and reference that is held small; reverse_kl is DPO."""
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Order of the alpha-divergence, between reverse KL (0) and forward KL (1)."""

    @model_validator(mode="after")
    def _alpha_belongs_to_its_divergence(self) -> FDpoObjective:
        if (self.divergence == "alpha") != (self.alpha is not None):
            raise ValueError(
                "`alpha` is given with `divergence: alpha`, and only there: "
                "add `alpha: 0.5`, or remove it"
            )
        return self


class DpopObjective(ScaledLogratioObjective):
    """DPO-Positive (arXiv:2402.13228): chosen must not fall below the reference."""

    name: Literal["dpop"]
    """The objective."""
    penalty: NonNegativeFloat = 50.0
    """The paper's lambda."""


class ExoObjective(ScaledLogratioObjective):
    """Exact optimization, pairwise (arXiv:2402.00856, eq. 16)."""

    name: Literal["exo"]
    """The objective."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """Probability that the target distribution leaves to rejected."""


class NcaObjective(ScaledLogratioObjective):
    """Noise contrastive alignment of a pair (arXiv:2402.05369)."""

    name: Literal["nca"]
    """The objective."""


class ApoZeroObjective(ScaledLogratioObjective):
    """Anchored preference optimization: chosen up, rejected down (arXiv:2408.06266, eq. 7)."""

    name: Literal["apo_zero"]
    """The objective."""


class ApoDownObjective(ScaledLogratioObjective):
    """Anchored preference optimization: both down, rejected more (arXiv:2408.06266, eq. 8)."""

    name: Literal["apo_down"]
    """The objective."""


class SppoObjective(ScaledLogratioObjective):
    """Self-play preference optimization (arXiv:2405.00675, eq. 4.7), for on-policy completions."""

    name: Literal["sppo"]
    """The objective."""
    win_rates: Literal["hard", "soft"] = "hard"
    """Win rates of chosen and rejected: 1 and 0, or the probability that votes or rewards give."""


class DiscoPopObjective(ScaledLogratioObjective):
    """The discovered loss of DiscoPOP (arXiv:2406.08414, eq. 5)."""

    name: Literal["discopop"]
    """The objective."""
    temperature: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Temperature of the blend between its logistic and its exponential part."""


class AotObjective(ReferenceObjective):
    """Alignment by optimal transport (arXiv:2406.05882): whole distributions are compared.

    A step's loss reads the order of all its pairs, so each step first runs its global batch
    forward once without gradients: about a third more work.
    """

    name: Literal["aot"]
    """The objective."""
    alignment: Literal["paired", "unpaired"] = "paired"
    """Sorted margins of the policy against the reference's, or sorted chosen against sorted rejected."""
    label_smoothing: Smoothing = 0.0
    """Assumed share of wrong labels."""


class BcoObjective(ReferenceObjective):
    """Binary classifier optimization (arXiv:2404.04656): chosen above a shift, rejected below.

    With `batch_mean` each step first runs its global batch forward once without gradients.
    """

    name: Literal["bco"]
    """The objective."""
    reward_shift: Literal["batch_mean", "zero"] = "batch_mean"
    """What implicit rewards are held against: their mean over the global batch, or 0 (TRL's `bco_pair`)."""


class PlackettLuceObjective(RankingObjective):
    """The likelihood of a whole ranking (arXiv:2305.18290, appendix A.3); K = 2 is DPO."""

    name: Literal["plackett_luce"]
    """The objective."""


class BestOfKObjective(RankingObjective):
    """The likelihood of the best choice among K (arXiv:1909.08593); K = 2 is DPO."""

    name: Literal["best_of_k"]
    """The objective."""


class Tdpo1Objective(TdpoObjective):
    """Token-level DPO (arXiv:2404.11999)."""

    name: Literal["tdpo1"]
    """The objective."""


class Tdpo2Objective(TdpoObjective):
    """Token-level DPO with a weighted KL term (arXiv:2404.11999)."""

    name: Literal["tdpo2"]
    """The objective."""
    alpha: NonNegativeFloat = 0.5
    """Weight of the difference of sequential KLs."""


class BinaryCringeObjective(CringeObjective):
    """Cross-entropy on chosen, contrast with the model's own likeliest tokens on rejected (arXiv:2211.05826)."""

    name: Literal["binary_cringe"]
    """The objective."""


class PairwiseCringeObjective(CringeObjective):
    """Binary Cringe behind a soft gate on the margin (arXiv:2312.16682)."""

    name: Literal["pairwise_cringe"]
    """The objective."""
    gate_bias: Annotated[float, Field(allow_inf_nan=False)] = -10.0
    """Margin of log-probs, in nats, at which the gate is half open."""
    gate_temperature: PositiveFloat = 10.0
    """How softly the gate closes, in nats."""
    gate_gradient: bool = False
    """Whether gradients pass through the gate."""


class SimpoObjective(ReferenceFreeObjective):
    """SimPO (arXiv:2405.14734): margins of mean log-probs, without a reference."""

    name: Literal["simpo"]
    """The objective."""
    beta: PositiveFloat = 2.0
    """Scale of the mean log-probs."""
    gamma: NonNegativeFloat = 1.0
    """Target margin after scaling by beta: the paper's gamma, not its ratio gamma / beta."""


class OrpoObjective(ReferenceFreeObjective):
    """ORPO (arXiv:2403.07691): cross-entropy and an odds ratio, without a reference."""

    name: Literal["orpo"]
    """The objective."""
    odds_weight: NonNegativeFloat = 0.1
    """Weight of the odds-ratio term: the paper's lambda."""


class KtoObjective(ReferenceObjective):
    """Kahneman-Tversky optimization (arXiv:2402.01306), on unpaired data."""

    name: Literal["kto"]
    """The objective."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of desirable completions."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of undesirable completions."""

    @property
    def unit(self) -> Unit:
        """Single completions."""
        return "completions"


SingleObjective = Annotated[
    DpoObjective
    | ConservativeDpoObjective
    | RobustDpoObjective
    | OutlierMixtureObjective
    | SoftLabelObjective
    | IpoObjective
    | HingeObjective
    | FDpoObjective
    | DpopObjective
    | ExoObjective
    | NcaObjective
    | ApoZeroObjective
    | ApoDownObjective
    | SppoObjective
    | DiscoPopObjective
    | AotObjective
    | BcoObjective
    | PlackettLuceObjective
    | BestOfKObjective
    | Tdpo1Objective
    | Tdpo2Objective
    | BinaryCringeObjective
    | PairwiseCringeObjective
    | SimpoObjective
    | OrpoObjective
    | KtoObjective
    | RewardModelObjective,
    Field(discriminator="name"),
]


def named(value: Any) -> Any:
    """A plain string stands for `{name: ...}`; without a name the objective is DPO."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "dpo", **value} if isinstance(value, dict) else value


class Term(Section):
    """One objective of a sum."""

    weight: PositiveFloat = 1.0
    """Its factor."""
    objective: Annotated[SingleObjective, BeforeValidator(named)]
    """The objective."""


class SumObjective(Section):
    """A weighted sum of objectives that all learn from the same data."""

    name: Literal["sum"]
    """The objective."""
    terms: tuple[Term, ...]
    """The objectives with their weights."""

    @model_validator(mode="after")
    def _has_terms(self) -> SumObjective:
        if not self.terms:
            raise ValueError("a sum has at least one term: add `{objective: {name: dpo}}`")
        if any(term.objective.scalar_head for term in self.terms):
            raise ValueError("`reward_model` trains another kind of model: it stands alone")
        return self

    @property
    def uses_reference(self) -> bool:
        """Whether any term does."""
        return any(term.objective.uses_reference for term in self.terms)

    @property
    def uses_live_reference(self) -> bool:
        """Whether any term does."""
        return any(term.objective.uses_live_reference for term in self.terms)

    @property
    def scalar_head(self) -> bool:
        """No term has one."""
        return False

    @property
    def kl_beta(self) -> float | None:
        """That of the first term that has one."""
        betas = (term.objective.kl_beta for term in self.terms)
        return next((beta for beta in betas if beta is not None), None)


Objective = Annotated[
    Annotated[SingleObjective | SumObjective, Field(discriminator="name")],
    BeforeValidator(named),
]


def single_objectives(objective: Objective) -> tuple[SingleObjective, ...]:
    """The objectives that are summed: one, or the terms of a sum."""
    if isinstance(objective, SumObjective):
        return tuple(term.objective for term in objective.terms)
    return (objective,)
