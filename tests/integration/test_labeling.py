"""Candidates become scores and preferences on Ray: aligned, accounted for, resumable."""

from __future__ import annotations

import itertools
import logging
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raydpo.config.job import LabelingConfig, ModelConfig, PairsConfig, RewardConfig
from raydpo.core.errors import DataError, QuarantineBudgetError, ServiceError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import (
    PartResult,
    Stage,
    commit,
    open_stage,
    read_quarantine,
    read_rows,
    write_part,
)
from raydpo.core.storage import Folder
from raydpo.labeling.preferences import finish_preferences, preferences_work
from raydpo.labeling.stage import score_candidates
from tests.unit.labeling.reward_server import Answer, reward_of, reward_service

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

REWARD_MODEL = Path(__file__).parents[2] / "assets" / "sentiment-reward"
CLASSIFIER = RewardConfig(
    classifier=str(REWARD_MODEL), label="positive", input="completion", batch_size=4
)
MODEL = ModelConfig(path=str(REWARD_MODEL.parent / "review-lm"))
TEXTS = (" was superb and moving.", " was awful, a waste of time.", " was fine", " was dull")
PROMPTS, PROMPTS_PER_PART = 6, 2


@pytest.fixture
def candidates(tmp_path) -> Table:
    """Six prompts of four candidates, two prompts a part."""
    stage = Stage(
        Place(Folder(str(tmp_path / "candidates")), "test"), "candidates", "candidates", {}, {}
    )
    open_stage(stage)
    for part in range(PROMPTS // PROMPTS_PER_PART):
        names = [f"p{part * PROMPTS_PER_PART + i}" for i in range(PROMPTS_PER_PART)]
        rows = [candidate_row(name, k) for name in names for k in range(len(TEXTS))]
        write_part(stage, part, PartResult(rows, counts={"input": len(rows)}))
    return Table(stage.folder, commit(stage, {}))


def candidate_row(prompt_id: str, candidate: int):
    return {
        "prompt_id": prompt_id,
        "candidate": candidate,
        "prompt": "The acting",
        "prompt_ids": [1, 2],
        "completion": TEXTS[candidate] + f" {prompt_id}",
        "completion_ids": [10 + candidate, int(prompt_id[1:]), 3],
        "sampler_token_logps": [-0.5, -0.25, -0.5],
        "finish_reason": "stop",
        "seed": 7,
        "policy": "p",
    }


@pytest.fixture
def rewards_module(tmp_path, monkeypatch):
    """A module of rewards in the folder that the command runs in, on no worker's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "scratch_rewards.py").write_text(
        "def length(prompts, completions):\n"
        "    return [float(len(c)) for c in completions]\n"
        "def constant(prompts, completions):\n"
        "    return [1.0] * len(completions)\n"
        "def picky(prompts, completions):\n"
        "    return [float('nan') if c.endswith('p4') else 0.0 for c in completions]\n"
    )
    yield
    sys.modules.pop("scratch_rewards", None)


def score(folder: Path, candidates: Table, *rewards: RewardConfig, budget: float = 0.0) -> Table:
    place = Place(Folder(str(folder)), "test, score", max_quarantined_fraction=budget)
    return score_candidates(place, candidates, rewards)


def label(folder: Path, candidates: Table, scores: Table, labeling: LabelingConfig) -> Table:
    place = Place(Folder(str(folder)), "test, label")
    return finish_preferences(preferences_work(place, candidates, scores, labeling, MODEL))


def rows_of(table: Table):
    return list(read_rows(table.folder, table.manifest))


def expected_log_odds(texts: list[str]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(REWARD_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(REWARD_MODEL)
    with torch.inference_mode():
        logits = [model.eval()(**tokenizer(t, return_tensors="pt")).logits[0] for t in texts]
    return [(row[1] - row[0]).item() for row in logits]


@pytest.mark.usefixtures("rewards_module")
def test_candidates_are_scored_part_by_part_and_labelled(candidates, tmp_path):
    length = RewardConfig(function="scratch_rewards:length", weight=0.001, name="length")
    scores = score(tmp_path / "scores", candidates, CLASSIFIER, length)
    for part in range(3):
        rows, scored = candidates.part(part), scores.part(part)
        assert [(r["prompt_id"], r["candidate"]) for r in scored[::2]] == [
            (r["prompt_id"], r["candidate"]) for r in rows
        ]
        texts = [row["completion"] for row in rows]
        values = [row["value"] for row in scored if row["scorer"] == "sentiment-reward"]
        assert values == pytest.approx(expected_log_odds(texts), abs=1e-5)
        assert [r["value"] for r in scored if r["scorer"] == "length"] == [len(t) for t in texts]
    counts = scores.manifest["counts"]
    assert (counts["input"], counts["scored"], counts["output"], counts["quarantined"]) == (
        24, 24, 48, 0,
    )  # fmt: skip

    labeling = LabelingConfig(
        reward=(CLASSIFIER, length), pairs=PairsConfig(builder="all_pairs", min_margin=0.01)
    )
    preferences = label(tmp_path / "preferences", candidates, scores, labeling)
    groups = rows_of(preferences)
    assert [group["group_id"] for group in groups] == [f"p{i}" for i in range(PROMPTS)]
    by_candidate = {
        (r["prompt_id"], r["candidate"], r["scorer"]): r["value"] for r in rows_of(scores)
    }
    for group in groups:
        name = group["group_id"]
        assert group["rewards"] == [
            by_candidate[name, k, "sentiment-reward"] + 0.001 * by_candidate[name, k, "length"]
            for k in range(4)
        ]
        assert len(group["pairs"]) == 6
        best = max(range(4), key=group["rewards"].__getitem__)
        assert best == 0  # the praise
        assert sum(pair["chosen"] == best for pair in group["pairs"]) == 3


@pytest.mark.usefixtures("rewards_module")
def test_a_finished_stage_is_not_done_again_and_a_changed_function_makes_it_stale(
    candidates, tmp_path
):
    length = RewardConfig(function="scratch_rewards:length")
    first = score(tmp_path / "scores", candidates, length)
    assert score(tmp_path / "scores", candidates, length).manifest == first.manifest
    module = tmp_path / "scratch_rewards.py"
    module.write_text(module.read_text() + "# another version\n")
    again = score(tmp_path / "scores", candidates, length)
    assert again.manifest["key"] != first.manifest["key"]
    assert again.fingerprint == first.fingerprint


@pytest.mark.usefixtures("rewards_module")
def test_a_change_of_an_imported_module_or_a_declared_file_changes_the_scores(candidates, tmp_path):
    (tmp_path / "scratch_helper.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "factor.txt").write_text("1")
    (tmp_path / "scratch_rewards.py").write_text(
        "import scratch_helper\n"
        f"MORE = float(open({str(tmp_path / 'factor.txt')!r}).read())\n"
        "def length(completions, prompts):\n"
        "    return [scratch_helper.FACTOR * MORE * len(c) for c in completions]\n"
    )
    sys.modules.pop("scratch_rewards", None)
    length = RewardConfig(
        function="scratch_rewards:length", depends_on=(str(tmp_path / "factor.txt"),)
    )
    values = []
    for helper, more in (("1.0", "1"), ("2.00", "1"), ("2.00", "3")):
        (tmp_path / "scratch_helper.py").write_text(f"FACTOR = {helper}\n")
        (tmp_path / "factor.txt").write_text(more)
        values.append(rows_of(score(tmp_path / "scores", candidates, length))[0]["value"])
    sys.modules.pop("scratch_helper", None)
    assert values == [values[0], 2 * values[0], 6 * values[0]]


@pytest.mark.usefixtures("rewards_module")
def test_refused_candidates_are_quarantined_and_their_groups_go_on(candidates, tmp_path):
    picky = RewardConfig(function="scratch_rewards:picky", weight=0.0)
    with pytest.raises(QuarantineBudgetError, match="4 of 24"):
        score(tmp_path / "scores", candidates, picky, budget=0.1)
    scores = score(tmp_path / "scores", candidates, picky, CLASSIFIER, budget=0.2)
    refused = list(read_quarantine(scores.folder, scores.manifest))
    assert [row["id"] for row in refused] == [f"p4/{k}" for k in range(4)]
    scored = {(row["prompt_id"], row["candidate"]) for row in rows_of(scores)}
    assert len(scored) + len(refused) == 24
    preferences = label(
        tmp_path / "preferences", candidates, scores, LabelingConfig(reward=(picky, CLASSIFIER))
    )
    assert [row["group_id"] for row in rows_of(preferences)] == ["p0", "p1", "p2", "p3", "p5"]
    counts = preferences.manifest["counts"]
    assert (counts["pairs"], counts["groups_without_pairs"]) == (5, 1)
    assert counts["candidates_without_score"] == 4


@pytest.mark.usefixtures("rewards_module")
def test_equal_rewards_make_no_preferences_and_say_so_each_time(candidates, tmp_path):
    constant = RewardConfig(function="scratch_rewards:constant")
    scores = score(tmp_path / "scores", candidates, constant)
    for _ in range(2):
        with pytest.raises(DataError, match=r"(?s)no pair at all .*ties 6.*all rewards are equal"):
            label(tmp_path / "preferences", candidates, scores, LabelingConfig(reward=(constant,)))
        assert not (tmp_path / "preferences" / "manifest.json").exists()


@pytest.mark.usefixtures("rewards_module")
def test_a_function_that_fails_in_a_worker_is_the_users_error_here(candidates, tmp_path):
    (tmp_path / "scratch_rewards.py").write_text("def broken(p, c):\n    raise OSError('no key')\n")
    sys.modules.pop("scratch_rewards", None)
    with pytest.raises(DataError, match=r"'scratch_rewards:broken' raised OSError: no key"):
        score(tmp_path / "scores", candidates, RewardConfig(function="scratch_rewards:broken"))


@pytest.mark.usefixtures("rewards_module")
def test_candidates_that_end_or_hang_a_function_are_refused_and_told(candidates, tmp_path, caplog):
    (tmp_path / "scratch_rewards.py").write_text(
        "import os, time\n"
        "def odd(prompts, completions):\n"
        "    for c in completions:\n"
        "        if c.endswith('fine p1'): os._exit(3)\n"
        "        while c.endswith('dull p4'): time.sleep(0.01)\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    odd = RewardConfig(function="scratch_rewards:odd", timeout_seconds=2, max_attempts=1)
    with caplog.at_level(logging.WARNING, "raydpo"):
        scores = score(tmp_path / "scores", candidates, odd, budget=0.1)
    refused = {r["id"]: r["reason"] for r in read_quarantine(scores.folder, scores.manifest)}
    assert refused.keys() == {"p1/2", "p4/3"}
    assert "the reward function ended its process with status 3" in refused["p1/2"]
    assert "the reward function did not answer in 2 s at" in refused["p4/3"]
    assert len(rows_of(scores)) == 22
    for candidate, reason in refused.items():
        assert f"candidate {candidate} is refused: {reason}" in caplog.text
    assert "[test, score] part-00002: reward function" in caplog.text
    assert not scores.folder.child("_notices").files()
    with pytest.raises(QuarantineBudgetError, match="2 of 24"):
        score(tmp_path / "again", candidates, odd, budget=0.05)


def test_a_service_that_fails_a_fifth_of_the_time_gives_the_scores_that_are_owed(
    candidates, tmp_path, caplog
):
    draw = random.Random(3)
    faults = itertools.cycle(
        [
            Answer(500, b"boom"),
            Answer(429, headers={"Retry-After": "1"}),
            Answer(seconds=2.5),
            Answer(drop=True),
            Answer(200, b"<html>busy</html>"),
            Answer(change=lambda rewards: rewards[:-1]),
            Answer(change=lambda rewards: [float("nan"), *rewards[1:]]),
        ]
    )

    def plan(_number: int, texts: list[str]) -> Answer:
        if any(text.endswith("fine p1") for text in texts):
            return Answer(500, b"cannot read 'fine p1'")
        return next(faults) if draw.random() < 0.2 else Answer()

    with reward_service(plan) as service:
        http = {"url": service.url, "timeout_seconds": 2, "max_attempts": 5}
        reward = RewardConfig.model_validate({"http": http, "batch_size": 2})
        with caplog.at_level(logging.WARNING, "raydpo"):
            scores = score(tmp_path / "scores", candidates, reward, budget=0.1)
        (refused,) = read_quarantine(scores.folder, scores.manifest)
        asked = len(service.requests)
        score(tmp_path / "scores", candidates, reward, budget=0.1)
        assert len(service.requests) == asked
    assert asked > 12 + 5, "twelve batches, and one again and again"
    assert refused["id"] == "p1/2"
    assert "answered 500 Internal Server Error: \"cannot read 'fine p1'\"" in refused["reason"]
    counts = scores.manifest["counts"]
    assert (counts["input"], counts["scored"], counts["quarantined"]) == (24, 23, 1)
    given = {(r["prompt_id"], r["candidate"]): r["value"] for r in rows_of(scores)}
    owed = {(r["prompt_id"], r["candidate"]): r["completion"] for r in rows_of(candidates)}
    del owed["p1", 2]
    assert given == {name: reward_of("The acting", text) for name, text in owed.items()}
    gone = RewardConfig.model_validate({"http": {"url": service.url, "max_attempts": 2}})
    with pytest.raises(ServiceError, match="it answered no other row in 2 attempts, either"):
        score(tmp_path / "gone", candidates, gone)
