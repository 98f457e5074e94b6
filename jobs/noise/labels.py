"""Wrong labels: a kind, a rate, and the votes of annotators about one pair.

Two kinds of wrong labels are studied. A flipped label names the other completion. An outlier is
drawn uniformly, whatever the completions are (Christiano et al. 2017, arXiv:1706.03741, section
2.2.3), so half of the outliers are right by luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from raydpo.labeling.builders import Draws

Corruption = Literal["flips", "outliers"]
CORRUPTIONS: Final[tuple[Corruption, ...]] = get_args(Corruption)
#: Votes that a soft label is the mean of; odd, so that there is a majority.
VOTES: Final = 3


@dataclass(frozen=True)
class Noise:
    """A share of labels that carry an error.

    Attributes:
        corruption: what happens to them.
        rate: their share, 0 to 1.
    """

    corruption: Corruption
    rate: float

    @property
    def wrong_share(self) -> float:
        """The expected share of labels that end up wrong."""
        return self.rate if self.corruption == "flips" else self.rate / 2

    @property
    def name(self) -> str:
        """The corruption, or `none` at a rate of 0, where both kinds are the same."""
        return self.corruption if self.rate else "none"


@dataclass(frozen=True)
class Asked:
    """How many votes are collected.

    Attributes:
        votes: votes on each pair, odd.
        share: share of the pairs that are asked about.
    """

    votes: int = 1
    share: float = 1.0


def keeps_label(noise: Noise, draws: Draws, vote: int, pair: tuple[int, int]) -> bool:
    """Return whether one vote on a pair names the better completion.

    The first vote under flips is the label that `labeling.pairs.flip_rate` makes of the pair.

    Args:
        noise: the kind and the rate.
        draws: the random numbers of the prompt.
        vote: the number of the vote, from 0.
        pair: two candidate numbers, the lower one first.
    """
    again = ("vote", vote) if vote else ()
    match noise.corruption:
        case "flips":
            return draws.uniform("flip", *pair, *again) >= noise.rate
        case "outliers":
            drawn = draws.uniform("outlier", *pair, *again) < noise.rate
            return not drawn or draws.uniform("coin", *pair, *again) < 0.5


def share_of_votes(noise: Noise, draws: Draws, asked: Asked, pair: tuple[int, int]) -> float:
    """Return the share of a pair's votes for the better completion; 1.0 or 0.0 with one vote."""
    kept = [keeps_label(noise, draws, vote, pair) for vote in range(asked.votes)]
    return sum(kept) / asked.votes


def is_asked(draws: Draws, asked: Asked, pair: tuple[int, int]) -> bool:
    """Return whether there are any votes on a pair."""
    return draws.uniform("asked", *pair) < asked.share
