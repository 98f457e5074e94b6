"""Turn candidates and their scores into preferences.

Part by part, the stage reads the tables of candidates and of scores. It writes the table of
preferences, one group per prompt, with the pairs that the configuration builds. Every candidate
ends in a group, in the quarantine, or in a count. Counted candidates have no score, or their prompt
has no pair. For an objective that learns from samples, the groups without pairs stay.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from raydpo.config.content import content_of
from raydpo.config.job import LabelingConfig, ModelConfig, PairsConfig
from raydpo.config.labeling import CombineConfig
from raydpo.core.errors import DataError
from raydpo.core.own_code import function_hashes
from raydpo.core.own_functions import search_path
from raydpo.core.parts import (
    PartJob,
    PartStage,
    PartWork,
    Table,
    Transform,
    Workers,
    part_work,
    run_work,
)
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.labeling.builders import DATA, Draws, Scored
from raydpo.labeling.combining import Key, combine_values, combined_reward
from raydpo.labeling.data_chosen import DataChosen
from raydpo.labeling.groups import (
    by_prompt,
    candidate_id,
    preference_row,
    refuse_zero_pairs,
    refuse_zero_samples,
    sample_counts,
    sampled_row,
)
from raydpo.labeling.own_pairs import load_pairs
from raydpo.labeling.pairs import Matches, build_pairs
from raydpo.models.loading import load_tokenizer, tokenizer_fingerprint
from raydpo.prompts.encode import make_encoder
from raydpo.prompts.rows import RefusedRow

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

#: Maps (prompt_id, candidate) to its combined reward.
Rewards = Mapping[tuple[str, int], float]
#: Maps (prompt_id, candidate) to what that reward is made of, one term for each scorer.
Terms = Mapping[tuple[str, int], tuple[float | None, ...]]
PLAIN_SUM: Final = CombineConfig()


@dataclass(frozen=True)
class Labels:
    """Inputs of labels in addition to scores: `weights` by scorer, `matches` of an own builder.

    `data` reads the data's chosen completion, for the builder that takes it. With `samples` every group stays, also without pairs, and has the sampler's log-probs.
    """

    pairs: PairsConfig
    weights: dict[str, float]
    seed: int
    round_index: int
    matches: Matches | None = None
    data: DataChosen | None = None
    samples: bool = False
    combine: CombineConfig = PLAIN_SUM


def preferences_work(
    place: Place,
    candidates: Table,
    scores: Table,
    labeling: LabelingConfig,
    model: ModelConfig,
    samples: bool = False,
) -> PartWork:
    """Define the work that builds the pairs of every prompt.

    Args:
        place: where the preferences table goes; its seed and round fix all random draws.
        candidates: the completions.
        scores: their scores, in the same parts.
        labeling: the scorers' weights, and how pairs are built.
        model: its tokenizer encodes completions of the data.
        samples: whether training reads all completions with their rewards and the sampler's
            log-probs (`Config.trains_on_samples`).
    """
    labels = Labels(
        labeling.pairs,
        _weights(labeling),
        place.seed,
        place.round_index,
        samples=samples,
        combine=labeling.combine,
    )
    stage = preferences_stage(place, candidates, scores, labeling, model, samples)
    make = functools.partial(_make_transform, labels, model, search_path())
    job = PartJob(make, Workers(1), stage.begun.key)
    return part_work([PartStage(stage, [candidates, scores])], job)


def preferences_stage(
    place: Place,
    candidates: Table,
    scores: Table,
    labeling: LabelingConfig,
    model: ModelConfig,
    samples: bool = False,
) -> Stage:
    """Describe what these candidates' pairs are made from; arguments as of `preferences_work`."""
    own = labeling.pairs.own_builder
    code = function_hashes(own) if own is not None else {}
    of_data = labeling.pairs.builder == "data_chosen"
    return Stage(
        place=place,
        name=STAGE_NAME,
        table="sampled_preferences" if samples else "preferences",
        inputs={
            "candidates": candidates.fingerprint,
            "scores": scores.fingerprint,
            **{f"builder, {name}": value for name, value in code.items()},
            **({"tokenizer": tokenizer_fingerprint(model)} if of_data else {}),
        },
        settings={
            **content_of(labeling),
            **content_of(labeling.pairs),
            **labeling.pairs.later_content,
            **(_ends(model) if of_data else {}),
            "weights": _weights(labeling),
            **labeling.combine_content,
            "seed": place.seed,
            "round": place.round_index,
            **({"samples": True} if samples else {}),
        },
        parts_of=("candidates", "scores"),
    )


def _ends(model: ModelConfig) -> dict[str, list[int]]:
    return make_encoder(load_tokenizer(model)).end.settings


def _weights(labeling: LabelingConfig) -> dict[str, float]:
    return {reward.scorer: reward.weight for reward in labeling.reward}


def finish_preferences(work: PartWork) -> Table:
    """Finish `preferences_work`.

    Raises:
        DataError: no pair resulted; or no sample, where those are what is learned from.
        QuarantineBudgetError: too many candidates were refused.
    """
    made = run_work(work)[0]
    if made.manifest["table"] == "sampled_preferences":
        return refuse_zero_samples(made)
    return refuse_zero_pairs(
        made,
        "where all rewards are equal (ties), take another scorer or a higher "
        "sampling.temperature; where they differ too little (below_margin), lower "
        "labeling.pairs.min_margin; where completions are identical, sample more of them",
    )


def label_part(labels: Labels, candidates: list[Row], scores: list[Row]) -> PartResult:
    """Build the preferences of one part."""
    _refuse_other_prompts(candidates, scores)
    combined = combine_values(values_by_candidate(scores), labels.weights, labels.combine)
    terms = combined.terms
    rows: list[Row] = []
    refused: list[Row] = []
    counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)
    for group in by_prompt(candidates):
        data, unusable = _of_data(group[0], labels.data)
        reasons = [(row, unusable or _why_refused(row, labels.samples)) for row in group]
        refused += [_refused(row, reason) for row, reason in reasons if reason is not None]
        filled = [row for row, reason in reasons if reason is None]
        kept = [row for row in filled if (row["prompt_id"], row["candidate"]) in terms]
        row, found = _group(data, kept, terms, labels, group[0]["prompt_id"])
        rows += [row] if row is not None else []
        for name, count in found.items():
            counts[name] = counts.get(name, 0) + count
        counts["candidates_without_score"] += len(filled) - len(kept)
        counts["groups_without_pairs"] += row is None
        counts["candidates_in_groups_without_pairs"] += len(kept) if row is None else 0
    counts |= combined.counts
    counts |= sample_counts(rows) if labels.samples else {}
    return PartResult(rows, refused, counts)


def _refuse_other_prompts(candidates: list[Row], scores: list[Row]) -> None:
    """Raise if a part of the scores has other prompts than that part of the candidates."""
    others = {row["prompt_id"] for row in scores} - {row["prompt_id"] for row in candidates}
    if others:
        raise DataError(
            f"a part of the scores has the prompt {min(others)!r}, which its part of the candidates "
            "has not",
            "both tables are cut into parts at the same rows; one of them was made again since "
            "rows_per_part was changed",
            "add `--redo scores` once: the scores are made again in the parts of the candidates",
        )


def combined_rewards(
    scores: list[Row], weights: dict[str, float], combine: CombineConfig = PLAIN_SUM
) -> Rewards:
    """Return the rewards of the candidates that all scorers scored."""
    terms = combine_values(values_by_candidate(scores), weights, combine).terms
    return {key: combined_reward(own, combine) for key, own in terms.items()}


def values_by_candidate(scores: Iterable[Row]) -> dict[Key, dict[str, float | None]]:
    """Return the values of each candidate by scorer, from rows of a table of scores."""
    values: dict[Key, dict[str, float | None]] = {}
    for row in scores:
        values.setdefault((row["prompt_id"], row["candidate"]), {})[row["scorer"]] = row["value"]
    return values


def _make_transform(labels: Labels, model: ModelConfig, search: tuple[str, ...]) -> Transform:
    if (own := labels.pairs.own_builder) is not None:
        labels = replace(labels, matches=load_pairs(own, search))
    if labels.pairs.builder == "data_chosen":
        labels = replace(labels, data=DataChosen.of(labels.pairs, model))
    return functools.partial(label_part, labels)


def _of_data(sampled: Row, reader: DataChosen | None) -> tuple[Row | None, str | None]:
    """Return the data's completion of a prompt, or why the prompt is refused; None for neither."""
    try:
        return (reader.candidate(sampled) if reader is not None else None), None
    except RefusedRow as error:
        return None, f"the chosen completion of the data: {error}"


def _group(
    data: Row | None, candidates: list[Row], terms: Terms, labels: Labels, prompt_id: str
) -> tuple[Row | None, dict[str, int]]:
    """Return the group's row, or None if nothing is learned from it, and its counts.

    Args:
        data: the completion that the data chose, for the builder that takes it.
        candidates: the sampled completions that have a reward.
        terms: what their rewards are made of.
        labels: how they become pairs.
        prompt_id: the prompt.
    """
    of_data = labels.data is not None
    if of_data and data is None:
        return None, {"groups_without_chosen": int(bool(candidates))}
    of = [terms[row["prompt_id"], row["candidate"]] for row in candidates]
    scored = [
        Scored(
            row["candidate"],
            tuple(row["completion_ids"]),
            combined_reward(own, labels.combine),
            tuple(term or 0.0 for term in own),
        )
        for row, own in zip(candidates, of, strict=True)
    ]
    if data is not None:  # it wins whatever the rewards of the others
        scored.append(Scored(DATA, tuple(data["completion_ids"]), math.inf))
        candidates = [data, *candidates]
    draws = Draws(labels.seed, labels.round_index, prompt_id)
    built = build_pairs(scored, labels.pairs, draws, labels.matches)
    counts = {
        **built.counts,
        "pairs": len(built.pairs),
        "soft_labels": 0 if of_data else len(built.pairs),
    }
    if not built.pairs and not (labels.samples and candidates):
        return None, {**counts, "rankings": 0}
    row = preference_row(
        candidates,
        built.pairs,
        built.probabilities,
        rewards=None if of_data else [one.reward for one in scored],
        ranking=built.ranking,
        weights=built.weights,
    )
    return sampled_row(row, candidates) if labels.samples else row, counts


def _why_refused(candidate: Row, samples: bool) -> str | None:
    if not candidate["completion_ids"]:
        return "the completion has no tokens"
    if samples and candidate["sampler_token_logps"] is None:
        return "the sampler gave no log-probs, which the objective learns from"
    return None


def _refused(candidate: Row, reason: str) -> Row:
    return {
        "stage": STAGE_NAME,
        "id": candidate_id(candidate),
        "reason": reason,
        "row": json.dumps(candidate, ensure_ascii=False),
    }
