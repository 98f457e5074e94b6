"""What the sections of objectives share: their base classes and number types."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from raydpo.config.base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section

#: What an objective learns from: pairs, rankings of K completions, single judged completions, or
#: sampled completions with their rewards.
Unit = Literal["pairs", "rankings", "completions", "samples"]
#: The columns of the preferences table that hold each unit.
COLUMN_OF_UNIT: Final[dict[Unit, str]] = {
    "pairs": "pairs",
    "rankings": "ranking",
    "completions": "desirable",
    "samples": "sampler_token_logps",
}
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class LengthDesensitized(Section):
    """LD-DPO (arXiv:2409.06411): tokens beyond the length of the shorter completion count less."""

    ld_alpha: Fraction
    """Weight of the tokens beyond the shorter completion's length; 1 gives the plain sum."""


Length = Literal["sum", "mean"] | LengthDesensitized


class ObjectiveSection(Section):
    """What all objectives have in common."""

    sft_weight: NonNegativeFloat = 0.0
    """Weight of an added cross-entropy per token of the preferred completion (arXiv:2404.19733)."""

    @property
    def unit(self) -> Unit:
        """The unit that the objective learns from."""
        return "pairs"

    @property
    def uses_reference(self) -> bool:
        """Whether the objective needs reference log-probs; if not, raydpo skips that stage and its cost."""
        return True

    @property
    def uses_live_reference(self) -> bool:
        """Whether every worker holds the whole frozen reference beside the policy."""
        return False

    @property
    def scalar_head(self) -> bool:
        """Whether the objective trains a reward model, with one number in place of the output layer."""
        return False

    @property
    def kl_beta(self) -> float | None:
        """Strength of the KL constraint, which turns nats into implicit reward; None if there is no constraint."""
        return None


class ReferenceFreeObjective(ObjectiveSection):
    """An objective that reads only the policy's log-probs."""

    @property
    def uses_reference(self) -> bool:
        """Always false."""
        return False


class LikelihoodObjective(ReferenceFreeObjective):
    """What both objectives on likelihoods alone have in common."""

    length: Literal["sum", "mean"] = "sum"
    """How a completion's log-prob is formed: `sum` over its tokens, or `mean` per token."""


class ReferenceObjective(ObjectiveSection):
    """An objective that compares the policy with the reference."""

    beta: PositiveFloat = 0.1
    """Strength of the KL constraint."""

    @property
    def kl_beta(self) -> float | None:
        """The value of `beta`."""
        return self.beta


class LogratioObjective(ObjectiveSection):
    """An objective on the log-ratios of policy and reference."""

    length: Length = "sum"
    """How a completion's log-ratio is formed: `sum` over its tokens, `mean` per token, or `{ld_alpha: 0.5}`."""


class ScaledLogratioObjective(LogratioObjective, ReferenceObjective):
    """An objective on implicit rewards: log-ratios times beta."""


class RankingObjective(ScaledLogratioObjective):
    """An objective on rankings of K completions."""

    @property
    def unit(self) -> Unit:
        """Always rankings."""
        return "rankings"


class TdpoObjective(ReferenceObjective):
    """What both forms of token-level DPO have in common."""

    @property
    def uses_live_reference(self) -> bool:
        """Always true: the KL over the vocabulary is too large to store."""
        return True


class CringeObjective(ReferenceFreeObjective):
    """What both Cringe objectives have in common."""

    alpha: NonNegativeFloat = 1.0
    """Weight of the contrastive term."""
    top_k: PositiveInt = 5
    """Number of likeliest other tokens, from which the contrasting token is drawn."""
