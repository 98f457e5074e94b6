"""Join stage tables into the samples, log-probs and pairs from which metrics are computed.

Finished tables of samples, scores, groups and per-token log-probs are joined by id. Rows that a
stage refused are missing on both sides, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from raydpo.config.job import RewardConfig
from raydpo.config.labeling import CombineConfig
from raydpo.core.errors import DataError
from raydpo.core.on_driver import map_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.evaluation.metrics import sequence_logratios
from raydpo.labeling.combining import combine_values, combined_reward


@dataclass(frozen=True)
class Sample:
    """One completion with the judges' scores.

    Args:
        score: the judges' values put together, by default in their weighted sum.
        values: each judge's own value, by the judge's name; without judges that do not apply to it.
        logp: log-prob of the completion under the model that sampled it, in nats; None if its
            sampler gave none.
        prompt_tokens: length of the prompt in tokens, if it is known.
    """

    prompt_id: str
    candidate: int
    prompt: str
    completion: str
    completion_ids: tuple[int, ...]
    finish_reason: str
    score: float
    values: dict[str, float]
    logp: float | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class ScoredCompletions:
    """Per-token log-probs (nats) of the same completions under both models; lists of n."""

    prompts: list[str]
    policy: list[list[float]]
    reference: list[list[float]]


@dataclass(frozen=True)
class HeldoutPairs:
    """Pairs of held-out groups: margin of log-ratios (nats), weight and prompt; lists of n."""

    prompts: list[str]
    margins: list[float]
    weights: list[float]


@dataclass(frozen=True)
class HeldoutJudgements:
    """Judged completions of held-out unpaired groups: log-ratio (nats), judgement, prompt; lists of n."""

    prompts: list[str]
    logratios: list[float]
    desirable: list[bool]

    def side(self, desirable: bool) -> tuple[list[float], list[str]]:
        """Return log-ratios and prompts of the desirable completions, or of the others."""
        rows = zip(self.logratios, self.prompts, self.desirable, strict=True)
        kept = [(value, prompt) for value, prompt, judged in rows if judged == desirable]
        return [value for value, _ in kept], [prompt for _, prompt in kept]


def collect_samples(
    candidates: Table,
    scores: Table,
    judges: tuple[RewardConfig, ...],
    combine: CombineConfig | None = None,
) -> list[Sample]:
    """Return the completions that every judge scored, in the order of the candidates table.

    Args:
        candidates: the completions.
        scores: their scores.
        judges: whose values count.
        combine: how the values become a score; None for their weighted sum.

    Raises:
        DataError: a judge gave a value that is not a finite number.
    """
    values = _values_by_candidate(scores)
    weights = {judge.scorer: judge.weight for judge in judges}
    how = combine or CombineConfig()
    terms = combine_values(values, weights, how).terms
    return [
        _sample(row, values[key], _score(terms[key], how))
        for row in _rows(candidates)
        if (key := (row["prompt_id"], row["candidate"])) in terms
    ]


def values_of(samples: list[Sample], judge: str) -> tuple[list[float], list[str]]:
    """Return a judge's own values of the samples that it applies to, and the prompt of each."""
    kept = [sample for sample in samples if judge in sample.values]
    return [sample.values[judge] for sample in kept], [sample.prompt_id for sample in kept]


def samples_by_prompt(samples: list[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each prompt, in order of first appearance."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.prompt_id, []).append(sample)
    return found


def mean_scores(reference: list[Sample], policy: list[Sample]) -> tuple[list[float], list[float]]:
    """Return the mean judge score of each prompt that both models have, in the same order."""
    theirs, ours = _scores_by_prompt(reference), _scores_by_prompt(policy)
    shared = [prompt for prompt in theirs if prompt in ours]
    return [fmean(theirs[p]) for p in shared], [fmean(ours[p]) for p in shared]


def groups_of_samples(place: Place, candidates: Table) -> Table:
    """Group the samples of each prompt, without pairs, for the log-prob stage."""
    inputs = {"candidates": candidates.fingerprint}
    stage = Stage(place, "policy_groups", "preferences", inputs, {})

    def part(rows: list[Row]) -> PartResult:
        return PartResult(_group_rows(rows), counts={"completions": len(rows)})

    return map_on_driver(stage, part, candidates)


def collect_logps(groups: Table, policy: Table, reference: Table) -> ScoredCompletions:
    """Return per-token log-probs of every completion that both models scored."""
    scored = ScoredCompletions([], [], [])
    for group, ours, theirs in _joined(groups, policy, reference):
        scored.prompts.extend([group["prompt_id"]] * len(ours))
        scored.policy.extend(ours)
        scored.reference.extend(theirs)
    return scored


def collect_heldout(
    groups: Table, policy: Table, reference: Table
) -> tuple[HeldoutPairs, HeldoutJudgements]:
    """Return held-out pairs or judged completions that both models scored; a table has one kind.

    A pair's margin is the log-ratio of its chosen completion minus that of its rejected one.
    """
    pairs, judged = HeldoutPairs([], [], []), HeldoutJudgements([], [], [])
    for group, ours, theirs in _joined(groups, policy, reference):
        logratios = sequence_logratios(ours, theirs)
        _add_pairs(pairs, group, logratios)
        _add_judgements(judged, group, logratios)
    return pairs, judged


def _add_pairs(pairs: HeldoutPairs, group: Row, logratios: list[float]) -> None:
    for pair in group["pairs"]:
        pairs.prompts.append(group["prompt_id"])
        pairs.margins.append(logratios[pair["chosen"]] - logratios[pair["rejected"]])
        pairs.weights.append(pair["weight"])


def _add_judgements(found: HeldoutJudgements, group: Row, logratios: list[float]) -> None:
    if group["desirable"] is None:
        return
    for value, judged in zip(logratios, group["desirable"], strict=True):
        if judged is not None:  # without a judgement, it answers another prompt
            found.prompts.append(group["prompt_id"])
            found.logratios.append(value)
            found.desirable.append(judged)


def _scores_by_prompt(samples: list[Sample]) -> dict[str, list[float]]:
    by_prompt = samples_by_prompt(samples)
    return {prompt: [sample.score for sample in some] for prompt, some in by_prompt.items()}


def _joined(
    groups: Table, policy: Table, reference: Table
) -> Iterator[tuple[Row, list[list[float]], list[list[float]]]]:
    """Join groups with both models' log-probs, and compare their lengths with the tokens."""
    ours, theirs = _logps_by_group(policy), _logps_by_group(reference)
    for group in _rows(groups):
        key = group["group_id"]
        if key not in ours or key not in theirs:
            continue
        lengths = [len(ids) for ids in group["completions"]]
        for logps in (ours[key], theirs[key]):
            if [len(values) for values in logps] != lengths:
                raise DataError(
                    f"group {key!r} has {[len(v) for v in logps]} log-probs",
                    f"each token of its completions has one: {lengths}",
                    f"delete {policy.folder.uri} and {reference.folder.uri} and run again",
                )
        yield group, ours[key], theirs[key]


def _logps_by_group(table: Table) -> dict[str, list[list[float]]]:
    return {row["group_id"]: row["reference_token_logps"] for row in _rows(table)}


def _values_by_candidate(scores: Table) -> dict[tuple[str, int], dict[str, float | None]]:
    values: dict[tuple[str, int], dict[str, float | None]] = {}
    for row in _rows(scores):
        if row["value"] is not None and not math.isfinite(row["value"]):
            raise DataError(
                f"{row['scorer']} gave {row['value']} for {row['prompt_id']!r}",
                "a judge's value is a finite number",
                "fix the judge, or let it raise an error where it has no value",
            )
        values.setdefault((row["prompt_id"], row["candidate"]), {})[row["scorer"]] = row["value"]
    return values


def _score(terms: Sequence[float | None], combine: CombineConfig) -> float:
    if combine.is_plain_sum:
        return math.fsum(term or 0.0 for term in terms)
    return combined_reward(terms, combine)


def _sample(row: Row, found: dict[str, float | None], score: float) -> Sample:
    values = {judge: value for judge, value in found.items() if value is not None}
    token_logps = row["sampler_token_logps"]
    return Sample(
        prompt_id=row["prompt_id"],
        candidate=row["candidate"],
        prompt=row["prompt"],
        completion=row["completion"],
        completion_ids=tuple(row["completion_ids"]),
        finish_reason=row["finish_reason"],
        score=score,
        values=values,
        logp=None if token_logps is None else math.fsum(token_logps),
        prompt_tokens=len(row["prompt_ids"]),
    )


def _group_rows(rows: list[Row]) -> list[Row]:
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    return [_group(prompt_id, members) for prompt_id, members in by_prompt.items()]


def _group(prompt_id: str, rows: list[Row]) -> dict[str, Any]:
    return {
        "group_id": prompt_id,
        "prompt_id": prompt_id,
        "prompt": rows[0]["prompt"],
        "prompt_ids": rows[0]["prompt_ids"],
        "completion_texts": [row["completion"] for row in rows],
        "completions": [row["completion_ids"] for row in rows],
        "rewards": None,
        "pairs": [],
        "ranking": None,
        "desirable": None,
    }


def _rows(table: Table) -> Iterator[Row]:
    for index in range(table.manifest["parts"]):
        yield from table.part(index)
