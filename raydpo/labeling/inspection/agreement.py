"""Whether those who judge agree with each other, and whether the place on the screen decides."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.core.position_bias import PositionBias, position_biases
from raydpo.core.tables import Row
from raydpo.labeling.inspection.findings import (
    Finding,
    Number,
    Verdict,
    above,
    not_measured,
    number_of,
    percent,
    with_interval,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys, text_keys
from raydpo.labeling.inspection.shares import Share, share_of

_TITLE: Final = "Agreement"
_LOOK: Final = 0.70
_BAD: Final = 0.55
_LOOK_ALPHA: Final = 0.40
_BAD_ALPHA: Final = 0.20
_RULE: Final = (
    f"rewards that order two completions of a prompt alike: look below {percent(_LOOK)}, bad below "
    f"{percent(_BAD)}; Krippendorff's alpha of people: look below {_LOOK_ALPHA:g}, bad below "
    f"{_BAD_ALPHA:g}; each by the upper end of its interval"
)
_POSITION_TITLE: Final = "Position bias"
_LOOK_POSITION: Final = 0.52
_BAD_POSITION: Final = 0.60
_POSITION_RULE: Final = (
    f"the share of choices of one place: look above {percent(_LOOK_POSITION)}, bad above "
    f"{percent(_BAD_POSITION)}, by the lower end of its interval"
)
_RESAMPLES: Final = 1_000


@dataclass
class Positions:
    """Counts at which of two places the chosen completion stood."""

    _first: list[NDArray[np.bool_]] = field(default_factory=list[NDArray[np.bool_]])
    _keys: list[Keys] = field(default_factory=list[Keys])

    def add(self, batch: Batch) -> None:
        """Take the groups whose data says the place."""
        known = [
            (index, group) for index, group in enumerate(batch.groups) if group.position is not None
        ]
        if known:
            self._first.append(np.array([group.position == 0 for _, group in known]))
            self._keys.append(batch.prompt_keys[[index for index, _ in known]])

    def finding(self, votes: Iterable[Row], score_counts: Mapping[str, int]) -> Finding:
        """Judge the places, in the data, in people's votes and in judges' answers.

        Args:
            votes: rows of the table of votes.
            score_counts: of the table of scores, where judges count their answers by place.
        """
        found: list[tuple[str, Share]] = []
        if self._first:
            share = share_of(np.concatenate(self._first), np.concatenate(self._keys))
            found += (
                [("choices of the first completion, by the data's columns", share)] if share else []
            )
        latest = _latest(votes)
        chosen = [(unit, choice) for (unit, _), choice in latest.items() if choice in ("a", "b")]
        if chosen:
            keys = text_keys(unit for unit, _ in chosen)
            share = share_of(np.array([choice == "a" for _, choice in chosen]), keys)
            found += [("choices of the first completion, by people", share)] if share else []
        found += [
            (f"choices of the first completion, by {judge}", _as_share(bias))
            for judge, bias in position_biases(score_counts).items()
        ]
        if not found:
            why = "The data does not say which completion stood first."
            return not_measured("position", _POSITION_TITLE, why)
        lows = [max(share.low, 1 - share.high) for _, share in found]
        return Finding(
            "position",
            _POSITION_TITLE,
            above(max(lows), _LOOK_POSITION, _BAD_POSITION),
            "; ".join(f"{name}: {with_interval(share)}" for name, share in found) + ".",
            _POSITION_RULE,
            [number_of(name, share) for name, share in found],
        )


def _as_share(bias: PositionBias) -> Share:
    """Return how often a judge that is asked in both orders takes the first completion."""
    value, low, high = ((1 + end) / 2 for end in (bias.value, bias.low, bias.high))
    # Its interval takes comparisons for independent, so that they are its units.
    return Share(value, max(0.0, low), min(1.0, high), bias.comparisons, 2 * bias.comparisons)


def agreement(scores: Iterable[Row], votes: Iterable[Row]) -> Finding:
    """Judge whether rewards agree with each other, and people with each other.

    Args:
        scores: rows of a table of scores, neighbours by prompt.
        votes: rows of a table of votes.
    """
    pairs = _of_scorers(scores)
    alpha = _alpha(votes)
    if not pairs and alpha is None:
        why = "Neither several rewards nor several people judged the same completions."
        return not_measured("agreement", _TITLE, why)
    verdicts: list[Verdict] = [above(1 - share.high, 1 - _LOOK, 1 - _BAD) for _, share in pairs]
    numbers = [number_of(f"{name} order two completions alike", share) for name, share in pairs]
    said = [
        f"{name} order {with_interval(share)} of the completions alike" for name, share in pairs
    ]
    if alpha is not None:
        value, ends = alpha
        verdicts.append(above(-ends[1], -_LOOK_ALPHA, -_BAD_ALPHA))
        numbers.append(Number("Krippendorff's alpha of people's choices", value, ends, "alpha"))
        said.append(f"people's choices have an alpha of {value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]")
    text = "; ".join(said)
    return Finding("agreement", _TITLE, worst(verdicts), f"{text}.", _RULE, numbers)


def _of_scorers(scores: Iterable[Row]) -> list[tuple[str, Share]]:
    """Return for each two scorers how often they order two completions of a prompt alike."""
    outcomes: dict[tuple[str, str], tuple[list[bool], list[str]]] = {}
    for prompt, rows in itertools.groupby(scores, key=lambda row: row["prompt_id"]):
        values: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["value"] is not None:
                values.setdefault(row["scorer"], {})[row["candidate"]] = row["value"]
        for one, other in itertools.combinations(sorted(values), 2):
            right, prompts = outcomes.setdefault((one, other), ([], []))
            both = sorted(values[one].keys() & values[other].keys())
            for i, j in itertools.combinations(both, 2):
                first, second = (values[name][i] - values[name][j] for name in (one, other))
                if first and second:
                    right.append((first > 0) is (second > 0))
                    prompts.append(prompt)
    found: list[tuple[str, Share]] = []
    for (one, other), (right, prompts) in outcomes.items():
        if share := share_of(np.array(right, np.bool_), text_keys(prompts)):
            found.append((f"{one} and {other}", share))
    return found


def _latest(votes: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Return the latest choice of each annotator on each pair, without those withdrawn."""
    latest = {(vote["pair_id"], vote["annotator"]): vote["choice"] for vote in votes}
    return {key: choice for key, choice in latest.items() if choice != "withdrawn"}


def _alpha(votes: Iterable[Row]) -> tuple[float, tuple[float, float]] | None:
    """Return Krippendorff's alpha for nominal data with its interval; None without two opinions.

    With o_ck how often two people gave c and k to one pair, each pair with m choices weighted by
    1 / (m - 1), and n_c the row sums of o (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability", C):

        alpha = 1 - (n - 1) * sum_{c != k} o_ck / sum_{c != k} n_c n_k

    The interval is the 2.5th to 97.5th percentile over bootstrap resamples of the pairs, seed 0.
    """
    units: dict[str, Counter[str]] = {}
    for (unit, _), choice in _latest(votes).items():
        units.setdefault(unit, Counter())[choice] += 1
    names = ("a", "b", "tie")
    counted = [[counts[name] for name in names] for counts in units.values() if counts.total() > 1]
    if len(counted) < 2:
        return None
    counts = np.array(counted, np.float64)
    sizes = counts.sum(1)
    same = np.eye(len(names)) * counts[:, None, :]
    matrices = (counts[:, :, None] * counts[:, None, :] - same) / (sizes - 1)[:, None, None]
    draws = np.random.default_rng(0).integers(0, len(counted), (_RESAMPLES, len(counted)))
    values = [_alpha_of(matrices[draw].sum(0)) for draw in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    return _alpha_of(matrices.sum(0)), (float(low), float(high))


def _alpha_of(matrix: NDArray[np.float64]) -> float:
    sums = matrix.sum(1)
    total = float(sums.sum())
    expected = total**2 - float(sums @ sums)
    observed = total - float(np.trace(matrix))
    return 1 - (total - 1) * observed / expected if expected else 1.0
