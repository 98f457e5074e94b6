"""Ties and margins of the rewards behind the pairs, and how rewards vary by prompt."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection.findings import (
    Finding,
    Json,
    Number,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys
from raydpo.labeling.inspection.shares import share_of

Floats = NDArray[np.float64]

_TITLE: Final = "Ties and margins"
_LOOK_TIES: Final = 0.20
_BAD_TIES: Final = 0.50
_LOOK_REVERSED: Final = 0.01
_BAD_REVERSED: Final = 0.20
#: A margin below this part of the rewards' standard deviation is small.
_SMALL: Final = 0.1
_RULE: Final = (
    f"equal rewards among the completions of one prompt: look above {percent(_LOOK_TIES)}, bad above "
    f"{percent(_BAD_TIES)}; pairs whose rejected completion has the higher reward: look above "
    f"{percent(_LOOK_REVERSED)}, bad above {percent(_BAD_REVERSED)}; by the lower ends of the intervals"
)
_BY_PROMPT: Final = "Rewards by prompt"
_LOOK_BETWEEN: Final = 0.90
_BAD_BETWEEN: Final = 0.98
_LOOK_MODE: Final = 0.75
_BY_PROMPT_RULE: Final = (
    f"the share of the rewards' variance that lies between prompts: look above {percent(_LOOK_BETWEEN)}, "
    f"bad above {percent(_BAD_BETWEEN)}; look also where more than {percent(_LOOK_MODE)} of the "
    "completions have one and the same reward"
)
_NO_REWARDS: Final = "The data has no rewards or ratings."
_BINS: Final = 40
_EXAMPLES: Final = 2
#: A range of rewards that is narrower than this, relative to them, is rounding.
_NO_WIDTH: Final = 1e-9


@dataclass
class Rewards:
    """Collects the rewards of groups that have them."""

    _margins: list[Floats] = field(default_factory=list[Floats])
    _pair_prompts: list[Keys] = field(default_factory=list[Keys])
    _ties: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    _values: list[Floats] = field(default_factory=list[Floats])
    _sizes: list[int] = field(default_factory=list[int])
    _reversed: list[Json] = field(default_factory=list[Json])

    def add(self, batch: Batch) -> None:
        """Take the rewards of a batch."""
        rewards = np.full(len(batch.texts), np.nan)
        start = 0
        for group, key in zip(batch.groups, batch.prompt_keys.tolist(), strict=True):
            if group.rewards is not None:
                values = np.array(group.rewards, np.float64)
                rewards[start : start + len(values)] = values
                pairs = itertools.combinations(group.rewards, 2)
                ties = sum(one == other for one, other in pairs)
                count = len(values) * (len(values) - 1) // 2
                self._ties.append((key, ties, count))
                self._values.append(values)
                self._sizes.append(len(values))
            start += len(group.completions)
        margins = rewards[batch.chosen] - rewards[batch.rejected]
        known = ~np.isnan(margins)
        self._margins.append(margins[known])
        self._pair_prompts.append(batch.pair_prompts[known])
        for pair in np.flatnonzero(margins < 0)[: _EXAMPLES - len(self._reversed)].tolist():
            why = f"chosen has {-margins[pair]:.3g} less reward"
            self._reversed.append({**batch.example(pair), "why": why})

    def margins(self, counts: dict[str, int]) -> Finding:
        """Judge ties and margins.

        Args:
            counts: of the stage that built the pairs, for what it left out.
        """
        if not self._values or not any(map(len, self._margins)):
            return not_measured("margins", _TITLE, _NO_REWARDS)
        margins, prompts = np.concatenate(self._margins), np.concatenate(self._pair_prompts)
        keys = np.array([key for key, _, _ in self._ties], np.uint64)
        tied = np.array([ties for _, ties, _ in self._ties])
        total = np.array([count for _, _, count in self._ties])
        outcomes = np.repeat(
            np.tile([1.0, 0.0], len(keys)), np.stack([tied, total - tied], axis=1).ravel()
        )
        ties = share_of(outcomes, np.repeat(keys, total))
        against = share_of(margins < 0, prompts)
        spread = float(np.concatenate(self._values).std())
        small = share_of(np.abs(margins) < _SMALL * spread, prompts)
        assert ties is not None
        assert against is not None
        assert small is not None
        left_out = {name: counts[name] for name in _LEFT_OUT if counts.get(name)}
        said = (
            f"{with_interval(ties)} of the comparisons within a prompt are ties. "
            f"{with_interval(small)} of the margins are below a tenth of the rewards' standard deviation."
        )
        if left_out:
            said += (
                " Left out before: "
                + ", ".join(f"{n.replace('_', ' ')} {c:,}" for n, c in left_out.items())
                + "."
            )
        return Finding(
            "margins",
            _TITLE,
            worst(
                [
                    above(ties.low if tied.any() else 0.0, _LOOK_TIES, _BAD_TIES),
                    above(against.low if against.value else 0.0, _LOOK_REVERSED, _BAD_REVERSED),
                ]
            ),
            said,
            _RULE,
            [
                number_of("ties among the completions of a prompt", ties),
                number_of("pairs with a small margin", small),
                number_of("pairs whose rejected completion has the higher reward", against),
                Number("median margin", float(np.median(margins)), unit="reward"),
                Number("standard deviation of rewards", spread, unit="reward"),
            ],
            examples=self._reversed,
            measured={"ties": ties.value},
            plot=_histogram(margins),
        )

    def by_prompt(self) -> Finding:
        """Judge how the rewards vary by prompt."""
        if not self._values:
            return not_measured("rewards", _BY_PROMPT, _NO_REWARDS)
        values, sizes = np.concatenate(self._values), np.array(self._sizes)
        means = np.array([group.mean() for group in self._values])
        within = values - np.repeat(means, sizes)
        total = float(((values - values.mean()) ** 2).sum())
        between = 1 - float((within**2).sum()) / total if total else 1.0
        different, counts = np.unique(values, return_counts=True)
        mode = float(counts.max() / len(values))
        equal = float(np.mean([group.max() == group.min() for group in self._values]))
        verdict = above(between, _LOOK_BETWEEN, _BAD_BETWEEN)
        said = (
            f"{percent(between)} of the variance lies between prompts. {percent(mode)} of the "
            f"completions have the most frequent reward, {float(different[counts.argmax()]):.4g}."
        )
        return Finding(
            "rewards",
            _BY_PROMPT,
            worst([verdict, "look" if mode > _LOOK_MODE else "clean"]),
            said,
            _BY_PROMPT_RULE,
            [
                Number("share of the variance between prompts", between),
                Number("completions with the most frequent reward", mode),
                Number("prompts whose completions all have one reward", equal),
                Number("mean reward", float(values.mean()), unit="reward"),
            ],
            plot={"rewards": _histogram(values), "means": _histogram(means)},
        )


#: Counts of what builders leave out (`labeling/preferences.py`, `prompts/preferences.py`).
_LEFT_OUT: Final = ("ties", "below_margin", "identical", "groups_without_pairs", "without_pairs")


def _histogram(values: Floats) -> Json:
    """Return a histogram without the outermost thousandth on each side, which joins the end bins."""
    low, high = (float(end) for end in np.quantile(values, [0.001, 0.999]))
    if high - low <= _NO_WIDTH * max(1.0, abs(low)):
        low, high = low - 0.5, low + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    return {"edges": edges.tolist(), "counts": counts.tolist(), "mean": float(values.mean())}
