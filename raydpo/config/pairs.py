"""How the scores of a prompt's candidates become pairs."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from raydpo.config.base import (
    Fraction,
    NonNegativeFloat,
    OwnFunction,
    PositiveFloat,
    PositiveInt,
    Section,
)
from raydpo.config.content import Resolved

Builder = Literal[
    "best_worst",
    "all_pairs",
    "first_two",
    "best_random",
    "adjacent_ranks",
    "top_bottom",
    "best_of_n",
    "rejection_sampling",
    "correction",
    "data_chosen",
]

#: The settings that only one builder reads.
_OF_BUILDER: Final[dict[str, Builder]] = {
    "top_fraction": "top_bottom",
    "bottom_fraction": "top_bottom",
    "accepted": "rejection_sampling",
    "acceptance_beta": "rejection_sampling",
    "correct_above": "correction",
    "chosen_column": "data_chosen",
    "max_chosen_tokens": "data_chosen",
}
#: The settings that shape pairs and nothing else.
_OF_ALL_BUILDERS: Final = ("weight_by", "max_per_prompt", "merge_similarity")
_OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class PairsConfig(Section):
    """How the scores of a prompt's candidates become pairs."""

    builder: Builder | OwnFunction = "best_worst"
    """Which candidates are paired: a builder's name, or `package.module:name` of a function that chooses."""
    min_margin: NonNegativeFloat = 0.0
    """The rewards of a pair must differ by more than this; at 0 only ties are dropped."""
    weighting: Literal["pair", "group"] = "pair"
    """Whether each pair has weight 1, or the pairs of a group have weight 1 together."""
    ranking_ties: Literal["drop", "by_candidate"] = "drop"
    """Whether equal rewards leave a group without a ranking, or the lower candidate number ranks first; both are counted."""
    labels: Literal["argmax", "bradley_terry"] = "argmax"
    """Whether the higher reward always wins, or wins with probability sigmoid(difference / temperature)."""
    temperature: PositiveFloat = 1.0
    """Temperature of those probabilities, which raydpo draws labels from or keeps as soft labels."""
    flip_rate: Fraction = 0.0
    """Share of labels (for rankings, of whole rankings) that raydpo reverses to study noise; 0.5 makes labels random."""
    top_fraction: Resolved[_OpenFraction] = 0.25
    """For `top_bottom`: share of the candidates with the highest rewards, at least one."""
    bottom_fraction: Resolved[_OpenFraction] = 0.25
    """For `top_bottom`: share of the candidates with the lowest rewards, at least one."""
    accepted: Resolved[Annotated[int, Field(ge=2)]] = 8
    """For `rejection_sampling`: maximum number of a prompt's candidates that are accepted."""
    acceptance_beta: Resolved[PositiveFloat] = 0.5
    """For `rejection_sampling`: beta of the acceptance probability exp((reward - highest reward) / beta)."""
    correct_above: Resolved[Annotated[float, Field(allow_inf_nan=False)]] = 0.5
    """For `correction`: a candidate is correct if its reward is above this, and wrong otherwise."""
    chosen_column: Resolved[str] = "chosen"
    """For `data_chosen`: the column of the prompts that holds the chosen completion, as text or as messages that end with it."""
    max_chosen_tokens: Resolved[PositiveInt] = 512
    """For `data_chosen`: maximum length of that completion in tokens, including EOS; prompts with a longer one are quarantined."""
    max_per_prompt: Resolved[PositiveInt | None] = None
    """Maximum number of pairs of a prompt; raydpo draws which ones stay, and counts the others."""
    weight_by: Resolved[Literal["none", "margin", "agreement", "confidence"]] = "none"
    """What a pair's weight is: 1, the difference of the rewards, the share of the scorers that agree with the sum, or 2 p - 1 for p that the better one wins."""
    merge_similarity: Resolved[Annotated[float, Field(gt=0, le=1)] | None] = None
    """Candidates with at least this Jaccard similarity of their token trigrams count as one, the one with the lowest number; without it only equal completions do."""

    @property
    def own_builder(self) -> str | None:
        """The path of the function that builds pairs, if it is the user's own."""
        return self.builder if ":" in self.builder else None

    @property
    def later_content(self) -> dict[str, Any]:
        """The settings of later versions that change the pairs, for a stage's key.

        Only those that differ from the default, or that the builder reads, so that runs of earlier
        versions keep their keys.
        """
        fields = type(self).model_fields
        return {
            name: getattr(self, name)
            for name in (*_OF_BUILDER, *_OF_ALL_BUILDERS)
            if _OF_BUILDER.get(name) == self.builder or getattr(self, name) != fields[name].default
        }

    @property
    def only_for_pairs(self) -> str | None:
        """A setting of later versions that shapes pairs only, as text; None without one."""
        if self.builder in set(_OF_BUILDER.values()) | {"adjacent_ranks", "best_of_n"}:
            return f"builder {self.builder!r}"
        changed = [name for name in _OF_ALL_BUILDERS if name in self.later_content]
        return f"{changed[0]} {getattr(self, changed[0])!r}" if changed else None

    @model_validator(mode="after")
    def _builders_read_their_settings(self) -> PairsConfig:
        for name, builder in _OF_BUILDER.items():
            default = type(self).model_fields[name].default
            if builder != self.builder and getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` is for `builder: {builder}`, and the builder is {self.builder!r}: "
                    "take it out"
                )
        return self

    @model_validator(mode="after")
    def _top_and_bottom_are_apart(self) -> PairsConfig:
        if self.top_fraction + self.bottom_fraction > 1:
            raise ValueError(
                f"top_fraction {self.top_fraction:g} and bottom_fraction {self.bottom_fraction:g} "
                "are more than all candidates: their sum is at most 1"
            )
        return self

    @model_validator(mode="after")
    def _the_data_has_no_reward(self) -> PairsConfig:
        fields = {"min_margin": 0.0, "labels": "argmax", "weight_by": "none"}
        for name, default in fields.items():
            if self.builder == "data_chosen" and getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` compares the rewards of two candidates, and with the builder "
                    "`data_chosen` the chosen completion is the data's, which has none: take it out"
                )
        return self
