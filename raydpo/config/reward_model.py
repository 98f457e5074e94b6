"""The objective that trains a reward model instead of a policy."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from raydpo.config.objective_base import ReferenceFreeObjective, Unit


class RewardModelObjective(ReferenceFreeObjective):
    """Bradley-Terry maximum likelihood of a reward model (arXiv:2305.18290, eq. 2).

    It trains the model with a head of one number, in the format of transformers' sequence
    classification. It trains no policy.
    """

    name: Literal["reward_model"]
    """The objective."""
    learns_from: Literal["pairs", "rankings"] = "pairs"
    """What it learns from: `pairs`, or `rankings` by Plackett-Luce (eq. 18)."""

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
