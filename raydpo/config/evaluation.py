"""The evaluation of a policy, and its judge."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raydpo.config.base import PositiveInt, Section, Temperature
from raydpo.config.content import Resolved
from raydpo.config.data import Prompts
from raydpo.config.labeling import Rewards
from raydpo.config.sampling import SamplingConfig


class EvaluationConfig(Section):
    """Comparison of policy and reference on held-out prompts and pairs."""

    prompts: Resolved[Prompts]
    """Held-out prompts; for a plain path, raydpo uses the other keys of the run's own `prompts`."""
    judge: Resolved[Rewards]
    """The scorer of the report, preferably a different one from the scorer that made the labels."""
    samples_per_prompt: PositiveInt = 4
    """Number of completions that the reference and the policy each sample for a prompt."""
    temperature: Temperature = 1.0
    """Softmax temperature of those samples; only at 1 is the estimated KL that of the policy itself."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the preference groups that are kept out of training to measure accuracy and margins."""
    training_rewards: Resolved[bool] = True
    """Whether the rewards that made the labels score these samples, too; the report then says whether they rose together with the judge's score. A service is asked once more for each sample."""
    report_samples: PositiveInt = 12
    """Number of prompts whose samples the report shows side by side."""

    def sampling(self, of_the_run: SamplingConfig) -> SamplingConfig:
        """The settings of these samples: the run's, with this section's K and temperature."""
        asked = {"candidates": self.samples_per_prompt, "temperature": self.temperature}
        return of_the_run.model_copy(update=asked)

    @model_validator(mode="after")
    def _judges_are_others(self) -> EvaluationConfig:
        if any(judge.implicit for judge in self.judge):
            raise ValueError("a policy does not judge itself: give another reward")
        return self
