"""The objective of RLHF: policy gradient on the completions that the policy itself sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydpo.config.base import NonNegativeFloat, PositiveFloat
from raydpo.config.objective_base import ObjectiveSection, Unit


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
