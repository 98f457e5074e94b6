"""Tables on disk become samples, log-probs and pairs without the refused rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import RewardConfig
from raydpo.config.labeling import CombineConfig
from raydpo.core.errors import DataError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.core.storage import Folder, fingerprint, folder_of
from raydpo.core.tables import Row
from raydpo.evaluation.samples import (
    HeldoutJudgements,
    collect_heldout,
    collect_logps,
    collect_samples,
    groups_of_samples,
    mean_scores,
)
from tests.group_rows import group_row

JUDGES = (
    RewardConfig(function="judges:first", name="first", weight=1.0),
    RewardConfig(function="judges:second", name="second", weight=-0.5),
)


def table(folder: Path, schema: str, parts: list[list[Row]]) -> Table:
    stage = Stage(
        Place(folder_of(str(folder)), "test"), schema, schema, {"rows": fingerprint(parts)}, {}
    )
    open_stage(stage)
    for index, rows in enumerate(parts):
        write_part(stage, index, PartResult(rows, counts={"input": len(rows)}))
    return Table(stage.folder, commit(stage, {}))


def candidate(prompt: str, number: int, ids: list[int]) -> Row:
    return {
        "prompt_id": prompt,
        "candidate": number,
        "prompt": f"text of {prompt}",
        "prompt_ids": [1, 5],
        "completion": f"{prompt}/{number}",
        "completion_ids": ids,
        "sampler_token_logps": [-1.0] * len(ids),
        "finish_reason": "stop",
        "seed": 0,
        "policy": "weights",
    }


def candidates(folder: Path) -> Table:
    return table(
        folder,
        "candidates",
        [[candidate("a", 0, [7, 8]), candidate("a", 1, [9])], [candidate("b", 0, [7, 7, 2])]],
    )


def score(prompt: str, number: int, scorer: str, value: float) -> Row:
    row: Row = {"prompt_id": prompt, "candidate": number, "scorer": scorer, "value": value}
    return {**row, "rationale": None}


def logps(folder: Path, values: dict[str, list[list[float]]]) -> Table:
    rows = [{"group_id": key, "reference_token_logps": lists} for key, lists in values.items()]
    return table(folder, "reference", [rows])


def group(name: str, completions: list[list[int]], pairs: list[dict[str, Any]]) -> Row:
    return group_row(name, completions, prompt_id=f"prompt of {name}", pairs=pairs)


def test_samples_have_the_weighted_sum_of_their_judges(tmp_path: Path):
    scores = table(
        tmp_path / "scores",
        "scores",
        [[score("b", 0, "second", 4.0), score("b", 0, "first", 3.0)]],
    )
    (sample,) = collect_samples(candidates(tmp_path / "candidates"), scores, JUDGES)
    assert (sample.prompt_id, sample.completion, sample.completion_ids) == ("b", "b/0", (7, 7, 2))
    assert sample.score == pytest.approx(3.0 - 2.0)
    assert sample.values == {"second": 4.0, "first": 3.0}


def test_samples_are_scored_as_the_labels_combine(tmp_path: Path):
    rows = [score("a", k, "first", 10.0 * k) for k in range(2)]
    rows += [score("a", k, "second", 1.0) for k in range(2)]
    scores = table(tmp_path / "scores", "scores", [rows])
    combine = CombineConfig(normalize="z_score")
    found = collect_samples(candidates(tmp_path / "candidates"), scores, JUDGES, combine)
    assert [sample.score for sample in found] == [-1.0, 1.0]
    clipped = CombineConfig(clip=(0.0, 2.0))
    found = collect_samples(candidates(tmp_path / "candidates"), scores, JUDGES, clipped)
    assert [sample.score for sample in found] == [-0.5, 1.5]


def test_a_completion_that_one_judge_refused_is_left_out(tmp_path: Path):
    rows = [score("a", 0, "first", 1.0), score("a", 1, "first", 1.0), score("a", 1, "second", 0.0)]
    scores = table(tmp_path / "scores", "scores", [rows])
    samples = collect_samples(candidates(tmp_path / "candidates"), scores, JUDGES)
    assert [(s.prompt_id, s.candidate) for s in samples] == [("a", 1)]


def test_a_judgement_that_is_not_a_number_is_an_error(tmp_path: Path):
    scores = table(tmp_path / "scores", "scores", [[score("a", 0, "first", math.nan)]])
    with pytest.raises(DataError, match="first gave nan for 'a'"):
        collect_samples(candidates(tmp_path / "candidates"), scores, JUDGES)


def test_samples_become_groups_part_by_part_with_the_very_same_tokens(tmp_path: Path):
    sampled = candidates(tmp_path / "candidates")
    groups = groups_of_samples(Place(Folder(str(tmp_path / "groups")), "test"), sampled)
    assert groups.manifest["parts"] == 2
    rows = list(read_rows(groups.folder, groups.manifest))
    assert [(r["group_id"], r["completions"]) for r in rows] == [
        ("a", [[7, 8], [9]]),
        ("b", [[7, 7, 2]]),
    ]
    assert all(row["pairs"] == [] for row in rows)


def test_groups_go_on_after_an_interruption_and_then_stay(tmp_path: Path):
    sampled = candidates(tmp_path / "candidates")
    folder = Folder(str(tmp_path / "groups"))
    whole = groups_of_samples(Place(Folder(str(tmp_path / "undisturbed")), "test"), sampled)
    stage = Stage(
        Place(folder, "test"),
        "policy_groups",
        "preferences",
        {"candidates": sampled.fingerprint},
        {},
    )
    open_stage(stage)
    first = whole.part(0)
    write_part(stage, 0, PartResult(first, counts={"input": 2, "completions": 2}))
    resumed = groups_of_samples(Place(folder, "test"), sampled)
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.manifest["counts"] == whole.manifest["counts"]
    assert groups_of_samples(Place(folder, "test"), sampled).manifest == resumed.manifest


def test_log_probs_are_joined_by_group_and_the_refused_are_left_out(tmp_path: Path):
    groups = groups_of_samples(
        Place(Folder(str(tmp_path / "groups")), "test"), candidates(tmp_path / "candidates")
    )
    ours = logps(tmp_path / "ours", {"b": [[-1.0, -2.0, -3.0]], "a": [[-4.0, -5.0], [-6.0]]})
    theirs = logps(tmp_path / "theirs", {"a": [[-1.0, -1.0], [-2.0]]})
    scored = collect_logps(groups, ours, theirs)
    assert scored.prompts == ["a", "a"]
    assert scored.policy == [[-4.0, -5.0], [-6.0]]
    assert scored.reference == [[-1.0, -1.0], [-2.0]]


def test_log_probs_of_another_length_than_the_tokens_are_an_error(tmp_path: Path):
    groups = groups_of_samples(
        Place(Folder(str(tmp_path / "groups")), "test"), candidates(tmp_path / "candidates")
    )
    padded = logps(tmp_path / "ours", {"a": [[-4.0, -5.0], [-6.0, 0.0]]})
    with pytest.raises(DataError, match="group 'a'"):
        collect_logps(groups, padded, padded)


def test_margins_are_those_of_log_ratios_chosen_minus_rejected(tmp_path: Path):
    pairs = [
        {"chosen": 1, "rejected": 0, "weight": 0.5},
        {"chosen": 2, "rejected": 1, "weight": 1.0},
    ]
    groups = table(
        tmp_path / "groups", "preferences", [[group("g", [[3], [4, 5], [6]], pairs)], []]
    )
    ours = logps(tmp_path / "ours", {"g": [[-3.0], [-1.0, -1.0], [-2.0]]})
    theirs = logps(tmp_path / "theirs", {"g": [[-1.0], [-2.0, -2.0], [-2.0]]})
    found, judged = collect_heldout(groups, ours, theirs)
    assert judged == HeldoutJudgements([], [], [])
    assert found.prompts == ["prompt of g", "prompt of g"]
    assert found.margins == pytest.approx([2.0 - -2.0, 0.0 - 2.0])
    assert found.weights == pytest.approx([0.5, 1.0])


def test_judged_completions_are_those_of_their_own_prompt(tmp_path: Path):
    row = {**group("g", [[3], [4, 5]], []), "desirable": [False, None]}
    pairs = group("h", [[3], [4]], [{"chosen": 1, "rejected": 0, "weight": 1.0}])
    groups = table(tmp_path / "groups", "preferences", [[row, pairs]])
    ours = logps(tmp_path / "ours", {"g": [[-3.0], [-1.0, -1.0]], "h": [[-1.0], [-1.0]]})
    theirs = logps(tmp_path / "theirs", {"g": [[-1.0], [-2.0, -2.0]], "h": [[-1.0], [-1.0]]})
    _, found = collect_heldout(groups, ours, theirs)
    assert found == HeldoutJudgements(["prompt of g"], [-2.0], [False])
    assert found.side(False) == ([-2.0], ["prompt of g"])
    assert found.side(True) == ([], [])


def test_mean_scores_pair_prompts_whatever_their_order(tmp_path: Path):
    rows = [score(p, n, s, v) for p, n, v in [("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 7.0)]
            for s in ("first", "second")]  # fmt: skip
    scores = table(tmp_path / "scores", "scores", [rows])
    samples = collect_samples(candidates(tmp_path / "candidates"), scores, JUDGES)
    reference, policy = mean_scores(samples, samples[::-1])
    assert reference == pytest.approx([1.0, 3.5])
    assert policy == pytest.approx([1.0, 3.5])
