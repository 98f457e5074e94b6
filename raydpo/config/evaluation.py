"""The evaluation of a policy, and its judge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydpo.config.base import PositiveInt, Section, Temperature
from raydpo.config.content import Resolved
from raydpo.config.data import Prompts
from raydpo.config.labeling import Rewards
from raydpo.config.sampling import SamplingConfig


class BestOfConfig(Section):
    """Best-of-N: of N completions, the one with the highest reward of `labeling`, judged. It needs no training."""

    n: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64, 128)
    """The values of N, in rising order; all are measured on the same samples."""
    samples_per_prompt: PositiveInt = 128
    """Number of completions sampled for each held-out prompt, at least the largest N; more make the estimates of all N narrower."""
    models: Annotated[tuple[Literal["reference", "policy"], ...], Field(min_length=1)] = (
        "reference",
    )
    """The models whose completions are chosen from."""

    @model_validator(mode="after")
    def _samples_hold_every_n(self) -> BestOfConfig:
        if list(self.n) != sorted(set(self.n)):
            raise ValueError(f"n {list(self.n)}: give each N once, in rising order")
        if self.samples_per_prompt < self.n[-1]:
            raise ValueError(
                f"samples_per_prompt {self.samples_per_prompt}: the best of {self.n[-1]} needs at "
                f"least {self.n[-1]} samples. Raise it, or take smaller values of `n`"
            )
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models {list(self.models)}: give each once")
        return self


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
    best_of: Resolved[BestOfConfig | None] = None
    """Best-of-N beside the policy, or without one in a job that has no `training`; `best_of: {}` takes the defaults."""

    def sampling(self, of_the_run: SamplingConfig) -> SamplingConfig:
        """The settings of these samples: the run's, with this section's K and temperature."""
        asked = {"candidates": self.samples_per_prompt, "temperature": self.temperature}
        return of_the_run.model_copy(update={**asked, "temperatures": ()})

    @model_validator(mode="after")
    def _best_of_has_a_choice(self) -> EvaluationConfig:
        if self.best_of is not None and self.temperature == 0:
            raise ValueError(
                "`best_of` at temperature 0 chooses among equal completions: set `temperature` to 1"
            )
        return self

    @model_validator(mode="after")
    def _judges_are_others(self) -> EvaluationConfig:
        if any(judge.implicit for judge in self.judge):
            raise ValueError("a policy does not judge itself: give another reward")
        if any(judge.is_relative for judge in self.judge):
            raise ValueError(
                "a pairwise judge compares completions of one model, so its scores cannot compare "
                "two models: let it compare each with a `baseline_column` (schedule: "
                "against_baseline), or choose `mode: pointwise`"
            )
        return self
