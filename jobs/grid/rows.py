"""Measure finished runs: rows of results from run directories.

Samples, scores and KL are those that `raydpo compare` reads. The reward that made the labels scores
the same samples here: those of pi_ref and of every round, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from grid.points import Point
from grid.results import Row
from raydpo import open_run
from raydpo.config.job import RewardConfig
from raydpo.evaluation import metrics
from raydpo.evaluation.comparable import EvaluatedRun
from raydpo.evaluation.samples import Sample
from raydpo.labeling.scorers import Judge
from raydpo.labeling.stage import make_judge
from raydpo.show.evaluated import read_evaluated, read_evaluated_round


@dataclass
class RowMaker:
    """Makes rows; holds the classifier that made the labels, as loading it takes a second.

    Attributes:
        reward: the classifier, with log-odds as output.
    """

    reward: RewardConfig
    _judge: Judge | None = field(default=None, init=False)

    def of_reference(self, point: Point, seed: int, run: Path, overrides: Sequence[str]) -> Row:
        """Return the row of pi_ref, from the reference's samples of an offline run."""
        found = read_evaluated([str(run)])[0]
        nats = [0.0] * len(found.reference)
        prompts = [sample.prompt_id for sample in found.reference]
        return self._row(point, seed, found, found.reference, (prompts, nats), overrides)

    def of_run(
        self, point: Point, seed: int, run: Path, overrides: Sequence[str], seconds: float
    ) -> Iterator[Row]:
        """Yield the row of an offline run, or one of each round."""
        if not point.online:
            found = read_evaluated([str(run)])[0]
            yield self._policy_row(point, seed, found, overrides, seconds)
            return
        rounds = len(json.loads((run / "online.json").read_bytes())["policies"]) - 1
        for index in range(rounds):
            found = read_evaluated_round(str(run), index, f"{point.name}, round {index}")
            share = seconds * (index + 1) / rounds
            yield self._policy_row(point, seed, found, overrides, share, index + 1, rounds)

    def _policy_row(
        self,
        point: Point,
        seed: int,
        found: EvaluatedRun,
        overrides: Sequence[str],
        seconds: float,
        done: int | None = None,
        of: int | None = None,
    ) -> Row:
        kl = found.kl_prompts, found.kl_nats
        return replace(
            self._row(point, seed, found, found.policy, kl, overrides),
            rounds=done,
            last=done == of,
            data=None if point.online else on_preferences(found.run),
            curve={} if point.online else heldout_curve(found.run),
            train_seconds=math.fsum(row["step_seconds"] for row in found.training),
            seconds=seconds,
        )

    def _row(
        self,
        point: Point,
        seed: int,
        found: EvaluatedRun,
        samples: list[Sample],
        kl: tuple[list[str], list[float]],
        overrides: Sequence[str],
    ) -> Row:
        owners = [sample.prompt_id for sample in samples]
        rewards = self._rewards(samples)
        columns = {
            "score": (owners, [sample.score for sample in samples]),
            "kl": kl,
            "reward": (owners, rewards),
            "reward_share": (owners, [1 / (1 + math.exp(-reward)) for reward in rewards]),
            "tokens": (owners, [float(len(sample.completion_ids)) for sample in samples]),
        }
        prompts = sorted(set(owners))
        ids = [sample.completion_ids for sample in samples]
        repetition = metrics.repetition_share(ids, owners)
        return Row(
            method=point.method,
            strength=point.strength,
            seed=seed,
            run=found.run,
            overrides=list(overrides),
            prompts=prompts,
            completions=[owners.count(prompt) for prompt in prompts],
            sums={name: _sums(*column, prompts) for name, column in columns.items()},
            repetition=repetition.mean if repetition else None,
            distinct_2=metrics.distinct_2(ids),
            token_limit_share=fmean(sample.finish_reason == "length" for sample in samples),
        )

    def _rewards(self, samples: list[Sample]) -> list[float]:
        """Return the log-odds of the classifier that made the labels.

        Raises:
            ValueError: it refused a sample.
        """
        self._judge = self._judge or make_judge(self.reward)
        judged = self._judge([s.prompt for s in samples], [s.completion for s in samples])
        values = [value for value in judged.values if isinstance(value, float)]
        if len(values) < len(samples):
            refused = next(v for v in judged.values if not isinstance(v, float))
            raise ValueError(f"{self.reward.scorer} refused a sample: {refused}")
        return values


def on_preferences(run: str) -> dict[str, float]:
    """Return mean log-ratios in nats on the held-out preferences of a finished offline run.

    Returns:
        `chosen` and `rejected`, weighted as the pairs are; `all`, of every completion; and
        `accuracy`, the share of pairs whose chosen log-ratio is the larger one.
    """
    opened = open_run(run)
    groups = opened.arrow("heldout").to_pylist()
    policy, reference = (
        {row["group_id"]: row["reference_token_logps"] for row in opened.arrow(name).to_pylist()}
        for name in ("evaluation/heldout_policy", "evaluation/heldout_reference")
    )
    chosen, rejected, weights, every = [], [], [], []
    for group in groups:
        name = group["group_id"]
        logratios = metrics.sequence_logratios(policy[name], reference[name])
        every += logratios
        for pair in group["pairs"]:
            chosen.append(logratios[pair["chosen"]])
            rejected.append(logratios[pair["rejected"]])
            weights.append(pair["weight"])
    total = math.fsum(weights)
    right = [float(c > r) for c, r in zip(chosen, rejected, strict=True)]

    def mean(values: list[float]) -> float:
        return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / total

    found = {"chosen": mean(chosen), "rejected": mean(rejected), "accuracy": mean(right)}
    return {**found, "all": fmean(every)}


def heldout_curve(run: str) -> dict[str, list[float]]:
    """Return the training's measurements on held-out pairs: log-probs in nats, by step."""
    rows = open_run(run).heldout_metrics()
    names = [n for n in ("logps/chosen", "logps/rejected") if all(n in row for row in rows)]
    return {name: [float(row[name]) for row in rows] for name in ("step", *names) if rows}


def _sums(owners: list[str], values: list[float], prompts: list[str]) -> list[float]:
    found: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for prompt, value in zip(owners, values, strict=True):
        found[prompt].append(value)
    return [math.fsum(found[prompt]) for prompt in prompts]
