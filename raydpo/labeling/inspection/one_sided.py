"""Properties of texts that one completion of a pair has and the other lacks.

The counts of a property are over the pairs where it stands on one side alone: they say how often that
side is the chosen one. Intervals cover all properties of an item together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection.findings import Json, Verdict, above, percent, worst
from raydpo.labeling.inspection.groups import Batch, Keys
from raydpo.labeling.inspection.shares import Share, share_of, z_of

Flags = NDArray[np.bool_]

_EXAMPLES = 1
#: The lower end of the interval of how often the side that has a property is chosen, or rejected.
LOOK: Final = 0.60
BAD: Final = 0.75
#: The share of pairs that a property must decide for a look, and for bad.
COVERAGE: Final = (0.01, 0.05)


@dataclass(frozen=True)
class OneSided:
    """A property over all pairs.

    Attributes:
        name: the property.
        on_chosen: share of the pairs whose chosen completion has it.
        on_rejected: share of the pairs whose rejected completion has it.
        coverage: share of the pairs where one of the two has it alone.
        chosen: share of those pairs whose chosen completion has it; None without any.
    """

    name: str
    on_chosen: float
    on_rejected: float
    coverage: float
    chosen: Share | None

    @property
    def low(self) -> float:
        """The lower end for whichever side has it more often; 0 without any pair."""
        if self.chosen is None:
            return 0.0
        return self.chosen.low if self.chosen.value >= 0.5 else 1 - self.chosen.high

    @property
    def side(self) -> str:
        """Which side has it more often."""
        return "chosen" if self.chosen is None or self.chosen.value >= 0.5 else "rejected"

    def row(self) -> list[str]:
        """Return the cells of its row, after its name."""
        said = "–"
        if self.chosen is not None:
            ends = percent(self.chosen.low), percent(self.chosen.high)
            said = f"{percent(self.chosen.value)} [{ends[0]}, {ends[1]}]"
        return [
            percent(self.on_chosen),
            percent(self.on_rejected),
            percent(self.coverage),
            said,
        ]


#: The columns of a table of properties.
COLUMNS = ["", "chosen have it", "rejected have it", "one side alone", "then it is the chosen one"]


@dataclass
class Properties:
    """Counts some properties of the pairs' completions."""

    names: Sequence[str]
    pairs: int = 0
    _both: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    _signs: list[NDArray[np.int8]] = field(default_factory=list[NDArray[np.int8]])
    _which: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    _prompts: list[Keys] = field(default_factory=list[Keys])
    examples: dict[str, list[Json]] = field(default_factory=dict[str, list[Json]])

    def add(self, batch: Batch, flags: Flags) -> None:
        """Take the flags of a batch's texts, [T, properties]."""
        if not self._both.size:
            self._both = np.zeros((2, len(self.names)), np.int64)
        chosen, rejected = flags[batch.chosen], flags[batch.rejected]
        self.pairs += len(batch.chosen)
        self._both += np.stack([chosen.sum(0), rejected.sum(0)])
        pairs, which = np.nonzero(chosen != rejected)
        self._signs.append(np.where(chosen[pairs, which], 1, -1).astype(np.int8))
        self._which.append(which)
        self._prompts.append(batch.pair_prompts[pairs])
        for index, name in enumerate(self.names):
            known = self.examples.setdefault(name, [])
            if len(known) < _EXAMPLES and len(of_this := pairs[which == index]):
                known.append(
                    {**batch.example(int(of_this[0])), "why": f"{name}, on one side alone"}
                )

    def results(self) -> list[OneSided]:
        """Return each property over all pairs."""
        if not self.pairs:
            return []
        signs, which = np.concatenate(self._signs), np.concatenate(self._which)
        prompts, z = np.concatenate(self._prompts), z_of(len(self.names))
        found: list[OneSided] = []
        for index, name in enumerate(self.names):
            here = which == index
            found.append(
                OneSided(
                    name,
                    float(self._both[0, index] / self.pairs),
                    float(self._both[1, index] / self.pairs),
                    float(here.sum() / self.pairs),
                    share_of(signs[here] > 0, prompts[here], z),
                )
            )
        return found


def judged(found: Sequence[OneSided]) -> Verdict:
    """Judge properties that stand on one side alone, by the limits above."""
    verdicts: list[Verdict] = []
    for one in found:
        verdict = above(one.low, LOOK, BAD)
        if verdict == "bad" and one.coverage < COVERAGE[1]:
            verdict = "look"
        verdicts.append(verdict if one.coverage >= COVERAGE[0] else "clean")
    return worst(verdicts)
