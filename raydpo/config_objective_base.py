"""What the sections of objectives have in common: their base classes and number types.

What comes in: values of `training.objective`. What goes out: frozen pydantic models.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from raydpo.config_base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section

#: What an objective learns from: pairs, rankings of K completions, or single judged completions.
Unit = Literal["pairs", "rankings", "completions"]
#: The column of the preferences table that holds what there is to learn from.
COLUMN_OF_UNIT: Final[dict[Unit, str]] = {
    "pairs": "pairs",
    "rankings": "ranking",
    "completions": "desirable",
}
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class LengthDesensitized(Section):
    """LD-DPO (arXiv:2409.06411): what is longer than the shorter completion counts less."""

    ld_alpha: Fraction
    """Weight of the tokens past the length of the shorter completion; 1 is the plain sum."""


Length = Literal["sum", "mean"] | LengthDesensitized


class ObjectiveSection(Section):
    """What all objectives have in common."""

    sft_weight: NonNegativeFloat = 0.0
    """Weight of an added cross-entropy per token of the preferred completion (arXiv:2404.19733)."""

    @property
    def unit(self) -> Unit:
        """What it learns from."""
        return "pairs"

    @property
    def uses_reference(self) -> bool:
        """Whether reference log-probs are needed; without, that stage and its cost are skipped."""
        return True

    @property
    def uses_live_reference(self) -> bool:
        """Whether every worker holds the reference itself, whole and frozen, beside the policy."""
        return False

    @property
    def scalar_head(self) -> bool:
        """Whether it trains a reward model: one number in place of the output layer."""
        return False

    @property
    def kl_beta(self) -> float | None:
        """Strength of the KL constraint, which turns nats into implicit reward; None without one."""
        return None


class ReferenceFreeObjective(ObjectiveSection):
    """An objective on the policy's own log-probs."""

    @property
    def uses_reference(self) -> bool:
        """No."""
        return False


class ReferenceObjective(ObjectiveSection):
    """An objective that compares the policy with the reference."""

    beta: PositiveFloat = 0.1
    """Strength of the KL constraint."""

    @property
    def kl_beta(self) -> float | None:
        """Beta."""
        return self.beta


class LogratioObjective(ObjectiveSection):
    """An objective on log-ratios of policy and reference."""

    length: Length = "sum"
    """Log-ratios of a completion: `sum` over its tokens, `mean` per token, or `{ld_alpha: 0.5}`."""


class ScaledLogratioObjective(LogratioObjective, ReferenceObjective):
    """An objective on implicit rewards: log-ratios times beta."""


class RankingObjective(ScaledLogratioObjective):
    """An objective on rankings of K completions."""

    @property
    def unit(self) -> Unit:
        """Rankings."""
        return "rankings"


class TdpoObjective(ReferenceObjective):
    """What both forms of token-level DPO have in common."""

    @property
    def uses_live_reference(self) -> bool:
        """Yes: the KL over the vocabulary is too large to be kept."""
        return True


class CringeObjective(ReferenceFreeObjective):
    """What both Cringe objectives have in common."""

    alpha: NonNegativeFloat = 1.0
    """Weight of the contrast."""
    top_k: PositiveInt = 5
    """Likeliest other tokens, from which the contrasting one is drawn."""
