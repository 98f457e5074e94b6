"""A judge labels a run: through the configuration, on Ray, over a kill, with failures and a bias."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.cli import main
from raydpo.core.position_bias import position_bias
from tests.integration.runs import drive, manifest, rows, write_prompts
from tests.unit.labeling.judge_server import a_fifth_fails, judge_server, quality

pytestmark = pytest.mark.slow

_SAMPLER = """
def sample(prompts, seeds, max_completion_tokens):
    texts = [[f" [q={k}] reply {k}" for k in range(len(of))] for of in seeds]
    return [[{"text": text, "finish_reason": "stop"} for text in of] for of in texts]
"""


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A job whose candidates come from a function, and whose judge is at `url`."""
    write_prompts(tmp_path)
    (tmp_path / "planted_sampler.py").write_text(_SAMPLER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {
        "name": "run",
        "output": str(tmp_path),
        "rows_per_part": 6,
        "model": str(tiny_model),
        "prompts": {"path": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {
            "candidates": 4,
            "max_completion_tokens": 64,
            "function": "planted_sampler:sample",
        },
        "labeling": {"pairs": {"builder": "best_worst"}},
    }


def test_a_killed_labelling_goes_on_and_asks_for_no_answer_twice(
    job: dict[str, Any], tmp_path: Path
) -> None:
    with judge_server(bias=0.2, fails=a_fifth_fails()) as server:
        judge = {
            "url": server.url,
            "model": "planted",
            "rubric": "dialogue",
            "mode": "pairwise",
            "max_attempts": 12,
        }
        job["labeling"]["reward"] = {"judge": judge}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        command = ("labeling", str(tmp_path / "job.yaml"))
        killed = drive("judging", tmp_path / "run", *command, PYTHONPATH=str(tmp_path))
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
        kept = list((tmp_path / "run" / "judge-answers" / "answers").glob("*/*.json"))
        assert len(kept) >= 60
        before = server.answered.copy()
        done = drive("never", tmp_path / "run", *command, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr[-4000:]
        again = [question for question in before if server.answered[question] > before[question]]
    # What the killed process had under way was answered, and nobody was there to keep it. `check`
    # asks the self-test, whose answers it does not write.
    self_test = 8
    assert len(again) <= 4 + self_test
    counts = manifest(tmp_path / "run", "scores")["counts"]
    bias = position_bias(counts, "planted")
    assert bias is not None
    assert bias.low < 0.2 < bias.high
    assert bias.comparisons == 24 * 6
    assert f"planted: {bias}" in done.stderr + done.stdout
    scores = rows(tmp_path / "run", "scores")
    assert len(scores) == 24 * 4
    assert all(row["value_low"] < row["value"] < row["value_high"] for row in scores)
    assert len(json.loads(scores[0]["rationale"])) == 3
    groups = rows(tmp_path / "run", "preferences")
    agree = 0
    for group in groups:
        for pair in group["pairs"]:
            texts = group["completion_texts"]
            agree += quality(texts[pair["chosen"]]) > quality(texts[pair["rejected"]])
    assert agree / len(groups) > 0.95


@pytest.mark.usefixtures("ray_cluster")
def test_a_pointwise_judge_labels_and_a_budget_stops_and_goes_on(
    job: dict[str, Any], tmp_path: Path, capsys
) -> None:
    with judge_server() as server:
        judge = {
            "url": server.url,
            "model": "planted",
            "rubric": "dialogue",
            "lowest_score": 0,
            "budget": {"max_requests": 40},
        }
        job["labeling"]["reward"] = {"judge": judge}
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        assert main(["labeling", str(path)]) == 1
        assert "the judge planted has spent its budget: 40 requests" in capsys.readouterr().err
        budget = "labeling.reward.judge.budget.max_requests=400"
        assert main(["labeling", str(path), "--set", budget]) == 0
        asked = [question for question in server.questions if "[q=" in question]
        assert len(asked) == len(set(asked)) == 24 * 4
    scores = rows(tmp_path / "run", "scores")
    assert [row["value"] for row in scores] == [0.0, 1.0, 2.0, 3.0] * 24
    assert {row["rationale"] for row in scores} == {f"because {n}" for n in range(4)}
