"""The configuration's section on online rounds: sample, label, train, and again with the new policy.

What comes in: values of the section `online`. What goes out: frozen models.
"""

from __future__ import annotations

from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from raydpo.config_base import PositiveFloat, PositiveInt, Section
from raydpo.config_content import Placement, Resolved

#: TR-DPO's best weights of the policy in a soft update lie at 0.5 to 0.6 (arXiv:2404.09656).
DEFAULT_EMA_ALPHA = 0.5


class ReplayConfig(Section):
    """Preference groups of earlier rounds among those of a round."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a round's groups that come from earlier rounds; less where there are fewer."""
    max_age_rounds: Resolved[PositiveInt | None] = None
    """The oldest groups that are replayed; without it 1, those of the round before only."""

    @model_validator(mode="after")
    def _an_age_has_a_share(self) -> ReplayConfig:
        if self.max_age_rounds is not None and not self.share:
            raise ValueError("nothing is replayed: set `share`, or leave `max_age_rounds` out")
        return self

    @property
    def oldest_rounds(self) -> int:
        """Age of the oldest groups that are replayed, in rounds."""
        return self.max_age_rounds or 1


class StoppingConfig(Section):
    """When the rounds end early. The numbers are those of the evaluation after each round."""

    patience_rounds: PositiveInt | None = None
    """So many rounds in a row without a new best held-out reward; null never stops for it."""
    max_kl_nats: PositiveFloat | None = None
    """KL(policy || `reference.model`, or the original model without one), in nats per completion, above this."""
    max_displacement_nats: PositiveFloat | None = None
    """`logps/chosen` falling by more than this between the first and the last tenth of a round's steps."""
    max_length_growth: Annotated[float, Field(gt=1)] | None = None
    """Held-out completions longer than those of the original model by more than this factor."""


class RoundPromptsConfig(Section):
    """Which prompts a round samples for."""

    prompts: Literal["cycle", "sample", "split"] = "cycle"
    """Prompts of a round: the next of a shuffled circle, drawn anew, or one of as many equal shares as there are rounds."""
    prompts_per_round: PositiveInt | None = None
    """With `cycle` and `sample`; without it all prompts stand in every round."""


class TrainingGroupsConfig(Section):
    """Which preference groups a round trains on."""

    min_spread_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Curriculum: train only on groups whose reward spread (best - worst) reaches this quantile of the round."""
    replay: ReplayConfig = ReplayConfig()
    """Preference groups of earlier rounds among those of a round."""


class OnlineConfig(RoundPromptsConfig, TrainingGroupsConfig):
    """Rounds in which the policy of one round samples in the next."""

    rounds: Resolved[PositiveInt] = 3
    """Rounds, where nothing stops them before."""
    pairs: Resolved[Literal["labels", "self_play"]] = "labels"
    """By `labeling`; or SPIN: the data of `sft` give prompts and chosen completions, the policy's own are rejected."""
    reference: Resolved[Literal["original", "previous", "ema"]] = "original"
    """pi_ref: the original, the policy before the round (TR-DPO's hard update), or an average of both (soft)."""
    reference_every_rounds: Resolved[PositiveInt | None] = None
    """With `previous` and `ema`: rounds between two updates of the reference; without it 1."""
    ema_alpha: Resolved[Annotated[float, Field(gt=0, le=1)] | None] = None
    """With `ema`: the policy's weight in the average; without it 0.5."""
    keep_engines: Placement[bool] = True
    """Engines live through all rounds and are given new weights; false ends them after sampling, where the other stages find no room beside them."""
    lookahead: Resolved[Literal[0, 1]] = 0
    """1: the next round samples while this one trains, from the policy before it: one round stale, and recorded."""
    stopping: Placement[StoppingConfig] = StoppingConfig()
    """When the rounds end early."""

    @model_validator(mode="after")
    def _nothing_is_given_in_vain(self) -> OnlineConfig:
        if self.prompts == "split" and self.prompts_per_round is not None:
            raise ValueError("`prompts: split` shares all prompts: leave out `prompts_per_round`")
        if self.reference == "original" and self.reference_every_rounds is not None:
            raise ValueError(
                "`reference: original` never changes: leave out `reference_every_rounds`"
            )
        if self.reference != "ema" and self.ema_alpha is not None:
            raise ValueError("only `reference: ema` has an `ema_alpha`: leave it out")
        if self.lookahead and not self.keep_engines:
            raise ValueError("`lookahead` samples during training: engines must be kept")
        return self

    @property
    def reference_update_alpha(self) -> float:
        """Weight of the policy in an updated reference; 1 replaces it."""
        match self.reference:
            case "ema":
                return self.ema_alpha or DEFAULT_EMA_ALPHA
            case "original" | "previous":
                return 1.0
            case _:
                assert_never(self.reference)

    def sampler_of(self, round_index: int) -> int:
        """How many rounds the policy has been through that samples for a round."""
        return max(0, round_index - self.lookahead)

    def updates_reference(self, round_index: int) -> bool:
        """Whether the round has another reference than the one before it."""
        every = self.reference_every_rounds or 1
        return self.reference != "original" and round_index > 0 and round_index % every == 0
