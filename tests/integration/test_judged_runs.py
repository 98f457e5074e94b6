"""A judge labels a run: through the configuration, on Ray, over a kill, with failures and a bias."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from raydpo.cli import main
from raydpo.config.judges import ServedJudgeConfig
from raydpo.core.position_bias import position_bias
from raydpo.labeling.judges.served import start_server
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


def test_a_judge_that_raydpo_serves_by_vllm_answers_by_the_schema_and_ends_with_its_run(
    job: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    """Plumbing: a random model cannot judge, and its answers obey the schema all the same."""
    (tmp_path / "rubric.j2").write_text("{{ prompt }}{{ completion }}")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    judge = {
        "served": {
            "path": str(tiny_model),
            "chat_template": str(tmp_path / "chat.jinja"),
            "dtype": "float32",
        },
        "rubric": str(tmp_path / "rubric.j2"),
        "lowest_score": 3,
        "highest_score": 5,
        "max_rationale_characters": 8,
        "max_completion_tokens": 120,
        "self_test": False,
    }
    job["labeling"] = {
        "reward": {"judge": judge},
        "pairs": {"builder": "all_pairs"},
    }
    job["prompts"]["limit"] = 6
    job["sampling"]["candidates"] = 2
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    done = drive("never", tmp_path / "run", "labeling", str(path), PYTHONPATH=str(tmp_path))
    # The scores may all be equal: then there are no pairs, and the scores are finished.
    assert "labeling, scores] done" in done.stderr, done.stderr[-4000:]
    scores = rows(tmp_path / "run", "scores")
    assert len(scores) == 6 * 2
    assert {row["value"] for row in scores} <= {3.0, 4.0, 5.0}
    assert all(len(row["rationale"]) <= 8 for row in scores)
    waits_until_none_is_left(tmp_path)
    settings = manifest(tmp_path / "run", "scores")
    assert "weights of served judge 0 of tiny" in settings["inputs"]


def test_a_served_judge_leaves_no_engine_where_its_server_is_killed_with_the_worker(
    tmp_path: Path, tiny_model: Path
) -> None:
    """As Ray does to the children of a worker that ends; vLLM's engine is a child of the server."""
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    served = ServedJudgeConfig(path=str(tiny_model), chat_template=str(template), dtype="float32")
    server = start_server(served, "tiny")
    group = server.process.pid
    assert any("EngineCore" in title for title in titles_of_group(group))
    server.process.kill()
    assert server.process.stdin is not None
    server.process.stdin.close()
    deadline = time.monotonic() + 30
    while left := titles_of_group(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    server.close()


def titles_of_group(group: int) -> list[str]:
    """Titles of the processes of a group that have not ended."""
    found: list[str] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if os.getpgid(process.pid) == group and not ended:
                found.append(" ".join(process.cmdline()))
    return found


def waits_until_none_is_left(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while left := processes_with(str(folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_with(folder: str) -> list[str]:
    """Titles of the processes that a run left: all that it started have this folder in a variable."""
    found: list[str] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if folder in process.environ().get("PYTHONPATH", ""):
                found.append(" ".join(process.cmdline()))
    return found


def test_a_judge_compares_policy_and_reference_with_a_baseline_of_the_data(
    job: dict[str, Any], tmp_path: Path
) -> None:
    with judge_server(bias=0.2) as server:
        judge = {
            "url": server.url,
            "model": "planted",
            "rubric": "dialogue",
            "mode": "pairwise",
            "schedule": "against_baseline",
            "baseline_column": "letter",
        }
        job["sampling"] = {
            "candidates": 2,
            "max_completion_tokens": 8,
            "function": "tests.integration.samplers:generate",
        }
        job["labeling"]["reward"] = {"function": "tests.integration.rewards:count_e"}
        job["training"] = {
            "cpus_per_worker": 0.4,
            "global_batch_groups": 8,
            "learning_rate": 1e-3,
        }
        job["evaluation"] = {
            "prompts": {"path": str(tmp_path / "heldout.jsonl"), "max_prompt_tokens": 32},
            "judge": {"judge": judge},
            "samples_per_prompt": 2,
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        done = drive("never", tmp_path / "run", "run", str(path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    for scored in ("reference_scores", "policy_scores"):
        scores = rows(tmp_path / "run", f"evaluation/{scored}")
        assert len(scores) == 24 * 2
        assert all(row["value_low"] < row["value"] < row["value_high"] for row in scores)
        assert json.loads(scores[0]["rationale"])[0]["against"] == "baseline"
    report = (tmp_path / "run" / "round-000" / "evaluation" / "report.html").read_text()
    assert "position bias" in report
