"""The section on online rounds: sample, label, train, and repeat with the new policy."""

from __future__ import annotations

from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from raydpo.config.base import PositiveFloat, PositiveInt, Section
from raydpo.config.content import Placement, Resolved

#: TR-DPO's best weights of the policy in a soft update lie at 0.5 to 0.6 (arXiv:2404.09656).
DEFAULT_EMA_ALPHA = 0.5


class ReplayConfig(Section):
    """Replay of preference groups from earlier rounds."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a round's groups that come from earlier rounds; it is lower if too few are available."""
    max_age_rounds: Resolved[PositiveInt | None] = None
    """Maximum age of replayed groups in rounds; without it 1, which allows only the previous round."""

    @model_validator(mode="after")
    def _an_age_has_a_share(self) -> ReplayConfig:
        if self.max_age_rounds is not None and not self.share:
            raise ValueError("nothing is replayed: set `share`, or leave `max_age_rounds` out")
        return self

    @property
    def oldest_rounds(self) -> int:
        """Maximum age, in rounds, of the groups that are replayed."""
        return self.max_age_rounds or 1


class StoppingConfig(Section):
    """When the rounds end early. The evaluation after each round gives the numbers."""

    patience_rounds: PositiveInt | None = None
    """Stop after this many rounds in a row without a new best held-out reward; null disables this rule."""
    max_kl_nats: PositiveFloat | None = None
    """Stop above this KL(policy || `reference.model`), in nats per completion; without that model raydpo measures from the original model."""
    max_displacement_nats: PositiveFloat | None = None
    """Stop if `logps/chosen` falls by more than this between the first and the last tenth of a round's steps."""
    max_length_growth: Annotated[float, Field(gt=1)] | None = None
    """Stop if held-out completions are longer than those of the original model by more than this factor."""


class RoundPromptsConfig(Section):
    """Which prompts a round samples for."""

    prompts: Literal["cycle", "sample", "split"] = "cycle"
    """How a round gets its prompts: the next of a shuffled circle, a new draw, or one of as many equal shares as there are rounds."""
    prompts_per_round: PositiveInt | None = None
    """Number of prompts in a round, for `cycle` and `sample`; without it every round uses all prompts."""


class TrainingGroupsConfig(Section):
    """Which preference groups a round trains on."""

    min_spread_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Curriculum: train only on groups whose reward spread (best - worst) reaches this quantile of the round."""
    replay: ReplayConfig = ReplayConfig()
    """Replay of preference groups from earlier rounds."""


class OnlineConfig(RoundPromptsConfig, TrainingGroupsConfig):
    """Rounds in which the policy of one round samples in the next."""

    rounds: Resolved[PositiveInt] = 3
    """Maximum number of rounds."""
    pairs: Resolved[Literal["labels", "self_play"]] = "labels"
    """Who labels: `labeling`; or SPIN, where `sft` gives prompts and chosen completions, and the policy's own completions are rejected."""
    reference: Resolved[Literal["original", "previous", "ema"]] = "original"
    """The reference pi_ref: the original model, the policy before the round (TR-DPO's hard update), or an average of both (soft)."""
    reference_every_rounds: Resolved[PositiveInt | None] = None
    """Rounds between two updates of the reference, for `previous` and `ema`; without it 1."""
    ema_alpha: Resolved[Annotated[float, Field(gt=0, le=1)] | None] = None
    """Weight of the policy in the average, for `ema`; without it 0.5."""
    keep_engines: Placement[bool] = True
    """Whether engines live through all rounds and receive new weights; false ends them after sampling if the other stages find no room beside them."""
    lookahead: Resolved[Literal[0, 1]] = 0
    """With 1, the next round samples during this one's training. It uses the policy before that training, one round stale, and records this."""
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
        """Weight of the policy in an updated reference; with 1 the policy replaces it."""
        match self.reference:
            case "ema":
                return self.ema_alpha or DEFAULT_EMA_ALPHA
            case "original" | "previous":
                return 1.0
            case _:
                assert_never(self.reference)

    def sampler_of(self, round_index: int) -> int:
        """Return how many rounds of training the policy that samples for a round has had."""
        return max(0, round_index - self.lookahead)

    def updates_reference(self, round_index: int) -> bool:
        """Return whether the round's reference differs from that of the round before."""
        every = self.reference_every_rounds or 1
        return self.reference != "original" and round_index > 0 and round_index % every == 0
