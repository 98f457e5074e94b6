"""From candidates and their scores to preferences.

What comes in: the tables of candidates and of scores, part by part. What goes out: the
table of preferences, a group a prompt, with the pairs that the configuration builds.
Every candidate ends in a group, in the quarantine, or in a count: without a score, or of
a prompt without any pair.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from raydpo.config import LabelingConfig, PairsConfig
from raydpo.config_content import content_of
from raydpo.labeling.groups import by_prompt, candidate_id, preference_row, refuse_zero_pairs
from raydpo.labeling.pairs import Draws, Scored, build_pairs
from raydpo.parts import (
    PartJob,
    PartStage,
    PartWork,
    Table,
    Transform,
    Workers,
    part_work,
    run_work,
)
from raydpo.rankings import pair_weight
from raydpo.run import PartResult, Stage
from raydpo.storage import Folder
from raydpo.tables import Row

STAGE_NAME: Final = "preferences"

_COUNTED: Final = (
    "pairs",
    "ties",
    "below_margin",
    "identical",
    "flipped",
    "soft_labels",
    "rankings",
    "rankings_with_ties",
    "candidates_without_score",
    "groups_without_pairs",
    "candidates_in_groups_without_pairs",
)

#: (prompt_id, candidate) -> its combined reward.
Rewards = Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class Labels:
    """What labels depend on, beside the scores; `weights` by scorer."""

    pairs: PairsConfig
    weights: dict[str, float]
    seed: int
    round_index: int


def preferences_work(
    *,
    folder: Folder,
    candidates: Table,
    scores: Table,
    labeling: LabelingConfig,
    seed: int,
    round_index: int,
    what: str,
    max_quarantined_fraction: float,
) -> PartWork:
    """Build the pairs of every prompt.

    Args:
        folder: where the preferences table goes.
        candidates: the completions.
        scores: their scores, of the same parts.
        labeling: the scorers' weights, and how pairs are built.
        seed: the run's seed; it fixes what is drawn.
        round_index: the round; likewise.
        what: the stage and round, for the log.
        max_quarantined_fraction: share of the candidates that may be refused.
    """
    labels = Labels(labeling.pairs, _weights(labeling), seed, round_index)
    stage = preferences_stage(folder, candidates, scores, labeling, seed, round_index)
    job = PartJob(functools.partial(_make_transform, labels), Workers(1), stage.begun.key)
    return part_work([PartStage(stage, [candidates, scores], what)], job, max_quarantined_fraction)


def preferences_stage(
    folder: Folder,
    candidates: Table,
    scores: Table,
    labeling: LabelingConfig,
    seed: int,
    round_index: int,
) -> Stage:
    """What the pairs of these candidates are made from; arguments as of `preferences_work`."""
    return Stage(
        folder=folder,
        name=STAGE_NAME,
        table="preferences",
        inputs={"candidates": candidates.fingerprint, "scores": scores.fingerprint},
        settings={
            **content_of(labeling),
            **content_of(labeling.pairs),
            "weights": _weights(labeling),
            "seed": seed,
            "round": round_index,
        },
        parts_of=("candidates", "scores"),
    )


def _weights(labeling: LabelingConfig) -> dict[str, float]:
    return {reward.scorer: reward.weight for reward in labeling.reward}


def finish_preferences(work: PartWork) -> Table:
    """Bring `preferences_work` to its end.

    Raises:
        DataError: not a single pair came out.
        QuarantineBudgetError: too many candidates were refused.
    """
    return refuse_zero_pairs(
        run_work(work)[0],
        "where all rewards are equal (ties), take another scorer or a higher "
        "sampling.temperature; where they differ too little (below_margin), lower "
        "labeling.pairs.min_margin; where completions are identical, sample more of them",
    )


def label_part(labels: Labels, candidates: list[Row], scores: list[Row]) -> PartResult:
    """The preferences of one part."""
    rewards = combined_rewards(scores, labels.weights)
    rows: list[Row] = []
    refused: list[Row] = []
    counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)
    for group in by_prompt(candidates):
        refused += [_empty(row) for row in group if not row["completion_ids"]]
        filled = [row for row in group if row["completion_ids"]]
        kept = [row for row in filled if (row["prompt_id"], row["candidate"]) in rewards]
        row, found = _group(kept, rewards, labels, group[0]["prompt_id"])
        rows += [row] if row is not None else []
        for name, count in found.items():
            counts[name] += count
        counts["candidates_without_score"] += len(filled) - len(kept)
        counts["groups_without_pairs"] += row is None
        counts["candidates_in_groups_without_pairs"] += len(kept) if row is None else 0
    return PartResult(rows, refused, counts)


def combined_rewards(scores: list[Row], weights: dict[str, float]) -> Rewards:
    """Weighted sum of the scorers' values, for candidates that all of them scored."""
    values: dict[tuple[str, int], dict[str, float]] = {}
    for row in scores:
        values.setdefault((row["prompt_id"], row["candidate"]), {})[row["scorer"]] = row["value"]
    return {
        key: sum(weight * given[scorer] for scorer, weight in weights.items())
        for key, given in values.items()
        if given.keys() >= weights.keys()
    }


def _make_transform(labels: Labels) -> Transform:
    return functools.partial(label_part, labels)


def _group(
    candidates: list[Row], rewards: Rewards, labels: Labels, prompt_id: str
) -> tuple[Row | None, dict[str, int]]:
    """The group's row, or None where it has no pair, and its counts."""
    values = [rewards[row["prompt_id"], row["candidate"]] for row in candidates]
    scored = [
        Scored(row["candidate"], tuple(row["completion_ids"]), value)
        for row, value in zip(candidates, values, strict=True)
    ]
    draws = Draws(labels.seed, labels.round_index, prompt_id)
    built = build_pairs(scored, labels.pairs, draws)
    counts = {**built.counts, "pairs": len(built.pairs), "soft_labels": len(built.pairs)}
    if not built.pairs:
        return None, {**counts, "rankings": 0}
    row = preference_row(
        candidates,
        built.pairs,
        built.probabilities,
        rewards=values,
        ranking=built.ranking,
        weight=pair_weight(len(built.pairs), labels.pairs.weighting),
    )
    return row, counts


def _empty(candidate: Row) -> Row:
    return {
        "stage": STAGE_NAME,
        "id": candidate_id(candidate),
        "reason": "the completion has no tokens",
        "row": json.dumps(candidate, ensure_ascii=False),
    }
