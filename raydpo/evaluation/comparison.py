"""Compute the content of comparison.json: runs side by side, and each pair of them.

All numbers are over the prompts that every run has. docs/compare.md describes each key.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from raydpo import __version__
from raydpo.core.storage import fingerprint
from raydpo.evaluation import metrics
from raydpo.evaluation.comparable import EvaluatedRun, kl_is_comparable, notes, shared_prompts
from raydpo.evaluation.length_control import length_comparisons, length_controlled_win_rate
from raydpo.evaluation.measure import mean_score, outcomes
from raydpo.evaluation.metrics import Floats
from raydpo.evaluation.paired import (
    Clusters,
    clusters,
    holm,
    percentile_interval,
    resampled_means,
    swap_p_value,
    win_clusters,
)
from raydpo.evaluation.samples import Sample

Json = dict[str, Any]

#: Prompts whose samples are shown: those on which the runs' mean scores differ most.
SHOWN_PROMPTS: Final = 12
_CURVES: Final = ("loss", "rewards/margins", "rewards/accuracies")
#: Keys of a job that say where a run stands, and nothing of what it did.
_PLACES: Final = ("name", "output")
_QUANTITIES: Final = ("score", "kl_nats_per_completion", "completion_tokens")


def compare(runs: Sequence[EvaluatedRun], seed: int, resamples: int) -> Json:
    """Compare runs over the prompts that all of them have.

    Args:
        runs: two or more.
        seed: of the resamples.
        resamples: number of bootstrap resamples, and of exchanges of the swap test.

    Raises:
        RunError: the runs have different judges, or no prompt in common.
        DataError: two runs have different texts under one prompt id.
    """
    shared = shared_prompts(runs)
    kept = set(shared)
    sides = [_Side.of(run, kept) for run in runs]
    pairs = _pairs(sides, shared, seed, resamples, kl_is_comparable(runs))
    dominated = {d for pair in pairs for d in _losers(pair)}
    comparable = kl_is_comparable(runs)
    return {
        "raydpo": __version__,
        "judge": {"unit": runs[0].unit, **runs[0].judge},
        "prompts": {
            "in_all_runs": len(shared),
            "dropped": {run.label: len(_all_prompts(run) - kept) for run in runs},
        },
        "notes": notes(runs),
        "resampling": {"resamples": resamples, "seed": seed, "interval": "percentile, 95 %"},
        "runs": [side.as_json(seed, resamples) for side in sides],
        "pairs": pairs,
        "not_dominated": [r.label for r in runs if r.label not in dominated]
        if comparable
        else None,
        "settings": _differing_settings(runs),
        "curves": {run.label: _curves(run.training) for run in runs},
        "samples": _most_different(sides),
    }


@dataclass(frozen=True)
class _Side:
    """A run with its samples and log-ratios of the shared prompts alone."""

    run: EvaluatedRun
    policy: list[Sample]
    reference: list[Sample]
    kl: tuple[list[float], list[str]]

    @classmethod
    def of(cls, run: EvaluatedRun, kept: set[str]) -> _Side:
        """Drop what belongs to other prompts."""
        kl = [(v, p) for v, p in zip(run.kl_nats, run.kl_prompts, strict=True) if p in kept]
        return cls(
            run,
            [s for s in run.policy if s.prompt_id in kept],
            [s for s in run.reference if s.prompt_id in kept],
            ([value for value, _ in kl], [prompt for _, prompt in kl]),
        )

    @property
    def scores(self) -> tuple[list[float], list[str]]:
        return [s.score for s in self.policy], _prompts(self.policy)

    @property
    def lengths(self) -> tuple[list[float], list[str]]:
        return [float(len(s.completion_ids)) for s in self.policy], _prompts(self.policy)

    def as_json(self, seed: int, resamples: int) -> Json:
        """Return what is said of the run alone."""
        run, prompts = self.run, _prompts(self.policy)
        theirs = [s.score for s in self.reference], _prompts(self.reference)
        limit = [float(s.finish_reason == "length") for s in self.policy]
        ids = [s.completion_ids for s in self.policy]
        repetition = metrics.repetition_share(ids, prompts)
        return {
            "label": run.label,
            "run": run.run,
            "round": run.round_index,
            "online": run.online,
            "beta": run.beta,
            "score": mean_score(*self.scores, run.shares).as_json(),
            "reference_score": mean_score(*theirs, run.shares).as_json(),
            "win_rate_against_reference": metrics.win_rate(*self.scores, *theirs).as_json(),
            "length_controlled_win_rate_against_reference": _at_equal_length(
                self.policy, self.reference, seed, resamples
            ),
            "kl_nats_per_completion": metrics.clustered_mean(*self.kl).as_json(),
            "completion_tokens": metrics.clustered_mean(*self.lengths).as_json(),
            "token_limit_share": metrics.as_share(metrics.clustered_mean(limit, prompts)).as_json(),
            "repetition_share": repetition.as_json() if repetition else None,
            "distinct_2": metrics.distinct_2(ids),
        }


def _pairs(
    sides: Sequence[_Side], shared: list[str], seed: int, resamples: int, kl_comparable: bool
) -> list[Json]:
    """Compare each run with each later one; all numbers share the resamples."""
    columns = [
        [clusters(*values, shared) for values in (side.scores, side.kl, side.lengths)]
        for side in sides
    ]
    met = [*itertools.combinations(range(len(sides)), 2)]
    wins = [win_clusters(*sides[a].scores, *sides[b].scores, shared) for a, b in met]
    flat = [column for of_run in columns for column in of_run]
    drawn = resampled_means([*flat, *wins], resamples, seed)
    p_values = [swap_p_value(columns[a][0], columns[b][0], resamples, seed) for a, b in met]
    adjusted = holm(p_values)
    width = len(_QUANTITIES)
    found: list[Json] = []
    for index, (a, b) in enumerate(met):
        found_of_pair: Json = {
            f"{name}_difference": _difference(
                columns[a][q], columns[b][q], drawn[:, a * width + q], drawn[:, b * width + q]
            )
            for q, name in enumerate(_QUANTITIES)
        }
        found_of_pair["score_difference"] |= {"p": p_values[index], "p_holm": adjusted[index]}
        if not kl_comparable:
            found_of_pair["kl_nats_per_completion_difference"] = None
        rate = _estimate(wins[index].mean, drawn[:, len(flat) + index])
        names = {"first": sides[a].run.label, "second": sides[b].run.label}
        found_of_pair |= {
            "win_rate": rate,
            "length_controlled_win_rate": _at_equal_length(
                sides[a].policy, sides[b].policy, seed, resamples
            ),
        }
        found.append({**names, **found_of_pair, **dominance(names, found_of_pair)})
    return found


def _at_equal_length(first: list[Sample], second: list[Sample], seed: int, resamples: int) -> Json:
    """Return the first model's win rate at equal length, over the prompts that both have."""
    shared = sorted(set(_prompts(first)) & set(_prompts(second)))
    found = length_comparisons(outcomes(first), outcomes(second), shared)
    return length_controlled_win_rate(found, resamples, seed)


def _difference(first: Clusters, second: Clusters, drawn: Floats, of_second: Floats) -> Json:
    return _estimate(first.mean - second.mean, drawn - of_second)


def _estimate(mean: float, drawn: Floats) -> Json:
    return {
        "mean": mean,
        "standard_error": float(drawn.std(ddof=1)) if len(drawn) > 1 else None,
        "ci95": list(percentile_interval(drawn)),
    }


def dominance(names: dict[str, str], found: Json) -> Json:
    """Say which run has the higher score at the smaller KL, and whether both are beyond chance.

    A run dominates the other if it is at least as good in both, and better in one.

    Args:
        names: labels of the pair, `first` and `second`.
        found: `score_difference` and `kl_nats_per_completion_difference`, the first less the second,
            with `mean` and `ci95`; the latter is None where KL is not comparable.
    """
    score, kl = found["score_difference"], found["kl_nats_per_completion_difference"]
    if kl is None:
        return {"dominates": None, "beyond_chance": None}
    for name, sign in ((names["first"], 1), (names["second"], -1)):
        gain, cost = sign * score["mean"], sign * kl["mean"]
        if gain >= 0 >= cost and (gain > 0 or cost < 0):
            apart = [ends[0] > 0 or ends[1] < 0 for ends in (score["ci95"], kl["ci95"])]
            return {"dominates": name, "beyond_chance": all(apart)}
    return {"dominates": None, "beyond_chance": None}


def _losers(pair: Json) -> list[str]:
    winner = pair["dominates"]
    return [] if winner is None else [n for n in (pair["first"], pair["second"]) if n != winner]


def _all_prompts(run: EvaluatedRun) -> set[str]:
    return {s.prompt_id for s in [*run.policy, *run.reference]} | set(run.kl_prompts)


def _differing_settings(runs: Sequence[EvaluatedRun]) -> dict[str, Json]:
    """Return each key of the jobs that differs, with its value in each run; null if it has none.

    A section that a run lacks is one key, whose value elsewhere is "a section".
    """
    keys = sorted({key for run in runs for key in run.settings} - set(_PLACES))
    values = {key: {run.label: _setting(run.settings, key) for run in runs} for key in keys}
    return {
        key: of
        for key, of in values.items()
        if len({json.dumps(value) for value in of.values()}) > 1
        and not any(key[:dot] in values for dot in _dots(key))
    }


def _setting(settings: Json, key: str) -> Any:
    inside = any(name.startswith(f"{key}.") for name in settings)
    return "a section" if inside else settings.get(key)


def _dots(key: str) -> list[int]:
    return [index for index, letter in enumerate(key) if letter == "."]


def _curves(rows: list[Json]) -> dict[str, list[Any]]:
    """Return columns of the training's metrics: step, and those of the curves that it has."""
    by_step = {row["step"]: row for row in rows if any(key in row for key in _CURVES)}
    ordered = [by_step[step] for step in sorted(by_step)]
    named = [key for key in _CURVES if any(key in row for row in ordered)]
    return {key: [_finite(row.get(key)) for row in ordered] for key in ("step", *named)}


def _finite(value: float | None) -> float | None:
    """Return a value that JSON can say; None for the NaN of a loss that exploded."""
    return value if value is not None and math.isfinite(value) else None


def _most_different(sides: Sequence[_Side]) -> list[Json]:
    """Return the prompts on which the runs' mean scores differ most, with all their samples."""
    by_run = [_by_prompt(side.policy) for side in sides]
    means = {p: [fmean(s.score for s in of[p]) for of in by_run] for p in by_run[0]}
    # Prompts that differ alike are ordered by a hash, as nobody should select them.
    order = sorted(means, key=lambda p: (min(means[p]) - max(means[p]), fingerprint(p)))
    return [
        {
            "prompt_id": prompt,
            "prompt": by_run[0][prompt][0].prompt,
            "score_range": max(means[prompt]) - min(means[prompt]),
            "runs": {
                side.run.label: {
                    "mean_score": mean,
                    "samples": [
                        {
                            "score": s.score,
                            "completion": s.completion,
                            "finish_reason": s.finish_reason,
                        }
                        for s in of[prompt]
                    ],
                }
                for side, of, mean in zip(sides, by_run, means[prompt], strict=True)
            },
        }
        for prompt in order[:SHOWN_PROMPTS]
    ]


def _by_prompt(samples: list[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.prompt_id, []).append(sample)
    return found


def _prompts(samples: list[Sample]) -> list[str]:
    return [sample.prompt_id for sample in samples]
