"""The configuration of objectives: one small section each, chosen by `objective.name`.

Each section of `training.objective` accepts only the options that its objective reads, and says
what the objective learns from and needs. `training/losses/` has the formulas and sources.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raydpo.config.base import Fraction, NonNegativeFloat, OwnFunction, PositiveFloat, Section
from raydpo.config.content import Resolved
from raydpo.config.objective_base import (
    CringeObjective,
    LikelihoodObjective,
    LogratioObjective,
    ObjectiveSection,
    RankingObjective,
    ReferenceFreeObjective,
    ReferenceObjective,
    ScaledLogratioObjective,
    Smoothing,
    TdpoObjective,
    Unit,
)


class PolicyGradientObjective(ObjectiveSection):
    """Maximise E[r] - beta KL(policy || reference) by policy gradient on sampled completions.

    With `leave_one_out` and `kl: reward` it is RLOO (arXiv:2402.14740); with `group_normalized`,
    `kl: loss` and `loss_per: completion_mean` it is GRPO (arXiv:2402.03300).
    """

    name: Literal["policy_gradient"]
    """The objective."""
    beta: NonNegativeFloat = 0.1
    """Strength of the KL constraint, in units of the reward per nat; 0 leaves it out, and no reference is needed."""
    kl: Literal["reward", "loss", "weighted_loss"] = "reward"
    """Where the KL constraint stands: in the reward; as GRPO's loss term, whose gradient is that of the opposite KL(reference || policy); or as that term times the ratio, which corrects the direction."""
    advantages: Literal["leave_one_out", "group_normalized", "batch_mean"] = "leave_one_out"
    """What a reward is compared with: the mean of the group's others; the group's mean, in standard deviations of the group; or the mean over the global batch."""
    clip_low: Annotated[float, Field(gt=0, le=1)] | None = 0.2
    """A token's probability ratio of policy and sampler counts down to 1 - clip_low; null clips nothing below."""
    clip_high: PositiveFloat | None = 0.2
    """A token's probability ratio of policy and sampler counts up to 1 + clip_high; null clips nothing above."""
    loss_per: Literal["completion", "token", "completion_mean"] = "completion"
    """What the loss is a mean over: completions, each the sum of its tokens; all tokens of the global batch; or completions, each the mean of its tokens."""

    @model_validator(mode="after")
    def _has_no_cross_entropy(self) -> PolicyGradientObjective:
        if self.sft_weight:
            raise ValueError("`policy_gradient` prefers no completion: remove `sft_weight`")
        return self

    @property
    def unit(self) -> Unit:
        """Always sampled completions."""
        return "samples"

    @property
    def uses_reference(self) -> bool:
        """Whether there is a KL constraint."""
        return self.beta > 0

    @property
    def kl_beta(self) -> float | None:
        """The value of `beta`; None if it is 0."""
        return self.beta or None


class RewardModelObjective(ReferenceFreeObjective):
    """Bradley-Terry maximum likelihood of a reward model (arXiv:2305.18290, eq. 2).

    It trains the model with a head of one number, in the format of transformers' sequence
    classification. It trains no policy.
    """

    name: Literal["reward_model"]
    """The objective."""
    learns_from: Literal["pairs", "rankings"] = "pairs"
    """What it learns from: `pairs`, or `rankings` by Plackett-Luce (eq. 18)."""
    centering_weight: Resolved[NonNegativeFloat] = 0.0
    """Weight of an added (r_w + r_l)^2 of each pair, which keeps rewards near 0 (arXiv:2312.09244, sec. 2)."""

    @model_validator(mode="after")
    def _centers_pairs(self) -> RewardModelObjective:
        if self.centering_weight and self.learns_from != "pairs":
            raise ValueError(
                "`centering_weight` is of the two rewards of a pair: remove it, or learn from pairs"
            )
        return self

    @model_validator(mode="after")
    def _has_no_cross_entropy(self) -> RewardModelObjective:
        if self.sft_weight:
            raise ValueError("a reward model has no cross-entropy: remove `sft_weight`")
        return self

    @property
    def unit(self) -> Unit:
        """Either pairs or rankings."""
        return self.learns_from

    @property
    def scalar_head(self) -> bool:
        """Always true."""
        return True


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
    """DPO that assumes a share of labels drawn uniformly (arXiv:1706.03741, section 2.2.3)."""

    name: Literal["outlier_mixture"]
    """The objective."""
    outlier_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Assumed share of labels that carry no information."""


class SoftLabelObjective(ScaledLogratioObjective):
    """Cross-entropy with the probability that chosen wins, from votes or rewards."""

    name: Literal["soft_label"]
    """The objective."""


class IpoObjective(LogratioObjective):
    """Identity preference optimization (arXiv:2310.12036, eq. 17)."""

    name: Literal["ipo"]
    """The objective."""
    tau: PositiveFloat = 0.1
    """Strength of the KL constraint; the loss pulls the margin of log-ratios towards 1 / (2 tau)."""

    @property
    def kl_beta(self) -> float | None:
        """The value of `tau`."""
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
    """The divergence between policy and reference that training keeps small; reverse_kl is DPO."""
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
    """DPO-Positive (arXiv:2402.13228), which penalises a chosen completion that falls below the reference."""

    name: Literal["dpop"]
    """The objective."""
    penalty: NonNegativeFloat = 50.0
    """Weight of the penalty on a chosen completion below the reference: the paper's lambda."""


class ExoObjective(ScaledLogratioObjective):
    """Exact optimization, pairwise (arXiv:2402.00856, eq. 16)."""

    name: Literal["exo"]
    """The objective."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """Probability that the target distribution leaves to the rejected completion."""


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
    """How win rates are set: 1 for chosen and 0 for rejected, or the probabilities from votes or rewards."""


class DiscoPopObjective(ScaledLogratioObjective):
    """The discovered loss of DiscoPOP (arXiv:2406.08414, eq. 5)."""

    name: Literal["discopop"]
    """The objective."""
    temperature: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Temperature of the blend between the logistic and the exponential part."""


class AotObjective(ReferenceObjective):
    """Alignment by optimal transport (arXiv:2406.05882), which compares whole distributions.

    A step's loss depends on the order of all its pairs. So each step first runs its global batch
    forward once without gradients, which is about a third more work.
    """

    name: Literal["aot"]
    """The objective."""
    alignment: Literal["paired", "unpaired"] = "paired"
    """What is compared after sorting: margins of the policy with those of the reference, or chosen with rejected log-ratios."""
    label_smoothing: Smoothing = 0.0
    """Assumed share of wrong labels."""


class BcoObjective(ReferenceObjective):
    """Binary classifier optimization (arXiv:2404.04656): chosen above a shift, rejected below.

    With `batch_mean`, each step first runs its global batch forward once without gradients.
    """

    name: Literal["bco"]
    """The objective."""
    reward_shift: Literal["batch_mean", "zero"] = "batch_mean"
    """The shift that rewards are compared with: their mean over the global batch, or 0 (TRL's `bco_pair`)."""


class PlackettLuceObjective(RankingObjective):
    """The likelihood of a whole ranking (arXiv:2305.18290, appendix A.3); with K = 2 it is DPO."""

    name: Literal["plackett_luce"]
    """The objective."""


class BestOfKObjective(RankingObjective):
    """The likelihood of the best choice among K (arXiv:1909.08593); with K = 2 it is DPO."""

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
    """Temperature of the gate, in nats; a larger one closes it more gradually."""
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


class PreferredSftObjective(LikelihoodObjective):
    """Preferred-FT: cross-entropy on the chosen completions alone (arXiv:2305.18290, section 6)."""

    name: Literal["preferred_sft"]
    """The objective."""


class UnlikelihoodObjective(LikelihoodObjective):
    """Chosen more likely, rejected less, without a bound (arXiv:2305.18290, section 6; after arXiv:1908.04319).

    It is there to compare with: it degenerates, because nothing limits how unlikely rejected
    completions become.
    """

    name: Literal["unlikelihood"]
    """The objective."""
    alpha: Fraction = 0.5
    """Weight of the rejected completion's log-prob."""


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
        """Always single completions."""
        return "completions"


class FunctionObjective(ScaledLogratioObjective):
    """A loss of pairs that you write as a function of the pairs' log-ratios; see docs/objectives.md."""

    name: Literal["function"]
    """The objective."""
    function: OwnFunction
    """`package.module:name` of the function, which raydpo calls by the names in its signature."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of the function, by name."""

    @model_validator(mode="after")
    def _options_are_its_own(self) -> Self:
        given = {"chosen_logratios", "rejected_logratios", "probabilities", "beta"}
        if taken := sorted(given & self.options.keys()):
            raise ValueError(f"`{'`, `'.join(taken)}` is given anyway: take it out of `options`")
        return self


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
    | PreferredSftObjective
    | UnlikelihoodObjective
    | KtoObjective
    | RewardModelObjective
    | PolicyGradientObjective
    | FunctionObjective,
    Field(discriminator="name"),
]


def named(value: Any) -> Any:
    """Turn a plain string into `{name: ...}`, and a section without a name into DPO."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "dpo", **value} if isinstance(value, dict) else value


class Term(Section):
    """One objective of a sum."""

    weight: PositiveFloat = 1.0
    """Factor of this objective in the sum."""
    objective: Annotated[
        SingleObjective, BeforeValidator(named, json_schema_input_type=str | SingleObjective)
    ]
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
        if any(term.objective.unit == "samples" for term in self.terms):
            raise ValueError(
                "`policy_gradient` also trains on groups without pairs: it stands alone"
            )
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
        """The strength of the first term that has one."""
        betas = (term.objective.kl_beta for term in self.terms)
        return next((beta for beta in betas if beta is not None), None)


Objective = Annotated[
    Annotated[SingleObjective | SumObjective, Field(discriminator="name")],
    BeforeValidator(named, json_schema_input_type=str | SingleObjective | SumObjective),
]


def single_objectives(objective: Objective) -> tuple[SingleObjective, ...]:
    """Return the objectives that are summed: one, or the terms of a sum."""
    if isinstance(objective, SumObjective):
        return tuple(term.objective for term in objective.terms)
    return (objective,)


def own_objectives(objective: Objective) -> list[FunctionObjective]:
    """Return the parts of an objective that are functions of the user's own."""
    single = single_objectives(objective)
    return [section for section in single if isinstance(section, FunctionObjective)]
