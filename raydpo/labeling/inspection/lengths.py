"""Length bias: whether the longer completion of a pair is the chosen one.

A policy that learns from such pairs grows longer, whatever its completions say. The rule of lengths
alone is the most that a policy can gain from length: for each size of the difference, learned on half
of the prompts, it takes the longer or the shorter completion, and the other half says how often it is
right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection.findings import (
    Finding,
    Json,
    Number,
    Verdict,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys
from raydpo.labeling.inspection.shares import Z_95, Share, share_of, wilson

Floats = NDArray[np.float64]

#: The lower end of the interval of a share that is one-sided by so much.
_LOOK: Final = 0.55
_BAD: Final = 0.70
_TITLE: Final = "Length"
_RULE: Final = (
    f"look above {percent(_LOOK)}, bad above {percent(_BAD)}: the share of pairs whose longer "
    "completion is chosen (or rejected), or the accuracy of the rule of lengths alone, each by the "
    "lower end of its interval"
)
_BINS: Final = 10
_EXAMPLES: Final = 2


@dataclass
class Lengths:
    """Collects the lengths of the pairs' completions."""

    _chosen: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    _rejected: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    _prompts: list[Keys] = field(default_factory=list[Keys])
    _unit: str = "characters"
    _most: list[tuple[float, int, Json]] = field(default_factory=list[tuple[float, int, Json]])

    def add(self, batch: Batch) -> None:
        """Take the pairs of a batch."""
        self._unit = "tokens" if batch.in_tokens else "characters"
        chosen, rejected = batch.lengths[batch.chosen], batch.lengths[batch.rejected]
        self._chosen.append(chosen)
        self._rejected.append(rejected)
        self._prompts.append(batch.pair_prompts)
        if len(chosen):
            ratios = np.abs(_ratios(chosen, rejected))
            most = int(np.argmax(ratios))
            example = {
                **batch.example(most),
                "why": f"{chosen[most]} and {rejected[most]} {self._unit}",
            }
            self._most.append((-float(ratios[most]), len(self._most), example))
            self._most = sorted(self._most)[:_EXAMPLES]

    def finding(self) -> Finding:
        """Judge the lengths of all pairs."""
        if not self._chosen:
            return not_measured("length", _TITLE, "There are no pairs.")
        chosen, rejected = np.concatenate(self._chosen), np.concatenate(self._rejected)
        prompts = np.concatenate(self._prompts)
        unequal = chosen != rejected
        longer = share_of((chosen > rejected)[unequal], prompts[unequal])
        if longer is None:
            return not_measured("length", _TITLE, "All pairs have two completions of one length.")
        ratios = _ratios(chosen, rejected)
        rule = _length_rule(ratios, prompts)
        one_sided = longer.low if longer.value >= 0.5 else 1 - longer.high
        verdicts: list[Verdict] = [above(one_sided, _LOOK, _BAD)]
        if rule is not None:
            verdicts.append(above(rule.low, _LOOK, _BAD))
        return Finding(
            "length",
            _TITLE,
            worst(verdicts),
            self._says(longer, rule),
            _RULE,
            self._numbers(chosen, rejected, longer, rule),
            examples=[example for _, _, example in self._most],
            measured={
                "longer_chosen": longer.value,
                **({"length_rule_accuracy": rule.value} if rule else {}),
            },
            plot=_plot(ratios, chosen, rejected, self._unit),
        )

    def _says(self, longer: Share, rule: Share | None) -> str:
        said = f"The longer completion is the chosen one in {with_interval(longer)} of the pairs."
        if rule is None:
            return said
        return (
            f"{said} A rule of lengths alone is right in {with_interval(rule)} of held-out pairs."
        )

    def _numbers(
        self,
        chosen: NDArray[np.int64],
        rejected: NDArray[np.int64],
        longer: Share,
        rule: Share | None,
    ) -> list[Number]:
        correlation, ends = _correlation(chosen - rejected, longer.prompts)
        return [
            number_of("pairs of unequal length whose longer completion is chosen", longer),
            Number("correlation of length difference and label", correlation, ends, "r"),
            *(
                [number_of("accuracy of the rule of lengths on held-out pairs", rule)]
                if rule
                else []
            ),
            Number("mean length of chosen", float(chosen.mean()), unit=self._unit),
            Number("mean length of rejected", float(rejected.mean()), unit=self._unit),
        ]


def _ratios(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> Floats:
    """Return log of (chosen + 1) / (rejected + 1) for each pair."""
    return np.log((chosen + 1.0) / (rejected + 1.0))


def _correlation(
    differences: NDArray[np.int64], prompts: int
) -> tuple[float, tuple[float, float] | None]:
    """Correlate the length difference with the label, over both orders of each pair.

    With the differences d of chosen minus rejected, and label 1 for (chosen, rejected) and -1 for
    (rejected, chosen), Pearson's correlation is mean(d) / sqrt(mean(d^2)). The interval is Fisher's
    (1921), with prompts as the units.
    """
    square = float(np.mean(differences.astype(np.float64) ** 2))
    if not square:
        return 0.0, None
    found = float(np.mean(differences)) / math.sqrt(square)
    if prompts <= 3 or abs(found) >= 1:
        return found, None
    middle, half = math.atanh(found), Z_95 / math.sqrt(prompts - 3)
    return found, (math.tanh(middle - half), math.tanh(middle + half))


def _length_rule(ratios: Floats, prompts: Keys) -> Share | None:
    """Return how often the rule of lengths alone is right on half of the prompts."""
    heldout = (prompts >> np.uint64(7)) & np.uint64(1) == 1
    learned = ratios[~heldout]
    if not learned.size or not heldout.any():
        return None
    edges = np.quantile(np.abs(learned), np.linspace(0, 1, _BINS + 1)[1:-1])
    bins = np.searchsorted(edges, np.abs(learned), side="right")
    votes = np.bincount(bins, weights=np.sign(learned), minlength=_BINS)
    takes_longer = np.where(votes >= 0, 1.0, -1.0)
    others = ratios[heldout]
    right = np.sign(others) * takes_longer[np.searchsorted(edges, np.abs(others), side="right")]
    return share_of((right + 1) / 2, prompts[heldout])


def _plot(
    ratios: Floats, chosen: NDArray[np.int64], rejected: NDArray[np.int64], unit: str
) -> Json:
    """Return both histograms, and the share of longer ones by the size of the difference."""
    limit = max(float(np.quantile(np.concatenate([chosen, rejected]), 0.99)), 1.0)
    edges = np.linspace(0, limit, 31)
    sizes = np.abs(ratios)
    unequal = sizes > 0
    cuts = np.unique(np.quantile(sizes[unequal], np.linspace(0, 1, _BINS + 1)))
    where = np.clip(np.searchsorted(cuts, sizes, side="right") - 1, 0, max(len(cuts) - 2, 0))
    by_size = []
    for index in range(max(len(cuts) - 1, 1)):
        inside = unequal & (where == index)
        if count := int(inside.sum()):
            times = float(np.exp(np.median(sizes[inside])))
            value = float((ratios[inside] > 0).mean())
            ends = list(wilson(value, count))
            by_size.append({"times": times, "share": value, "ci": ends, "pairs": count})
    return {
        "unit": unit,
        "edges": edges.tolist(),
        "chosen": np.histogram(np.minimum(chosen, limit), edges)[0].tolist(),
        "rejected": np.histogram(np.minimum(rejected, limit), edges)[0].tolist(),
        "longer_by_ratio": by_size,
    }
