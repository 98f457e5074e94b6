"""`raydpo check` calls reward functions on two rows, and says what their scores depend on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raydpo.check.job import check
from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from tests.unit.labeling.reward_server import Answer, reward_service

pytestmark = pytest.mark.thorough

SOURCE = """
import checked_words
WORDS = open("words.txt").read().split()
def right(completions, prompts):
    return [len(c) for c in completions]
def faulty(prompts, completions, **columns):
    return columns["answer"]
def scaled(completions, truth, factor):
    if factor < 0: raise ValueError("a factor is not negative")
    return [factor * float(value) for value in truth]
def by_answer(completions, ground_truth):
    return [float(truth) for truth in ground_truth]
"""


@pytest.fixture
def job(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Config]]:
    """A job in a folder of its own, labelled by a function of checked_rewards.py there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "checked_rewards.py").write_text(SOURCE)
    (tmp_path / "checked_words.py").write_text("")
    (tmp_path / "words.txt").write_text("good bad\n")
    rows = [{"prompt": f"the film {n}"} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(reward: dict[str, Any], judge: dict[str, Any] | None = None) -> Config:
        values: dict[str, Any] = {
            "name": "job",
            "model": str(tiny_model),
            "prompts": {"path": "prompts.jsonl", "max_prompt_tokens": 32},
            "sampling": {"max_completion_tokens": 32},
            "labeling": {"reward": reward},
        }
        if judge is not None:
            values["evaluation"] = {"prompts": "prompts.jsonl", "judge": judge}
        return config_from_values(values, "test")

    yield make
    for name in ("checked_rewards", "checked_words"):
        sys.modules.pop(name, None)


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"function": f"checked_rewards:{name}", **more}


def test_a_reward_is_called_on_two_rows_and_what_its_hash_covers_is_told(job) -> None:
    report = check(job(function("right")))
    assert report.problems == ()
    facts = "\n".join(report.facts)
    assert "function checked_rewards:right(completions=..., prompts=...)" in facts
    assert "labeling.reward: function checked_rewards:right gave 20 and 41 on two rows" in facts
    assert "made again when these change: the function's own module" in facts
    assert "checked_rewards:right names words.txt: a change there leaves old scores" in facts


def test_a_declared_file_is_covered_and_an_absent_one_is_refused(job, tmp_path: Path) -> None:
    declared = check(job(function("right", depends_on="words.txt")))
    assert declared.problems == ()
    assert any("file words.txt" in fact for fact in declared.facts)
    assert not any("leaves old scores" in fact for fact in declared.facts)
    [problem] = check(job(function("right", depends_on=["absent.txt"]))).problems
    assert f"depends_on '{tmp_path}/absent.txt': there is no such file" in str(problem)


def test_a_fault_is_a_problem_with_the_users_own_line(job, tmp_path: Path) -> None:
    [problem] = check(job(function("faulty"))).problems
    lines = str(problem).splitlines()
    assert lines[0].endswith("raised KeyError: 'answer'")
    code = 'return columns["answer"]'
    assert lines[1].strip() == f"{tmp_path}/checked_rewards.py:7, in faulty: {code}"
    assert len(lines) == 4


def test_on_a_cluster_that_is_elsewhere_a_fault_is_told_and_no_problem(job, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    report = check(job(function("faulty")))
    assert report.problems == ()
    assert any("fails on this machine, and may not on the cluster" in f for f in report.facts)


def test_a_column_that_the_prompts_do_not_bring_is_refused(job, tmp_path: Path) -> None:
    [problem] = check(job(function("by_answer"))).problems
    assert "labeling.reward: checked_rewards:by_answer reads 'ground_truth'" in str(problem)
    assert "prompts.jsonl bring no columns for rewards" in str(problem)
    [problem] = check(job(function("right"), function("by_answer"))).problems
    assert "evaluation.judge: checked_rewards:by_answer reads 'ground_truth'" in str(problem)


def test_options_and_columns_reach_the_trial_and_wrong_ones_are_refused(job, tmp_path) -> None:
    rows = [{"prompt": f"the film {n}", "answer": n + 2} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def checked(**more: Any) -> Any:
        return check(job(function("scaled", **more)))

    good = {"options": {"factor": 3}, "columns": {"truth": "answer"}}
    report = checked(**good)
    assert report.problems == ()
    assert any("checked_rewards:scaled gave 6 and 9 on two rows" in fact for fact in report.facts)
    wrong = {
        "has the signature (completions, truth, factor): it takes no option `faktor`": {
            "options": {"faktor": 3}
        },
        "reads 'truth'": {"options": {"factor": 3}},
        "reads 'solution'": {"options": {"factor": 3}, "columns": {"truth": "solution"}},
        "ValueError: a factor is not negative": {**good, "options": {"factor": -1}},
    }
    for said, more in wrong.items():
        assert said in str(checked(**more).problems[0])
    [problem] = check(
        job(function("scaled", **good), function("scaled", **{**good, "options": {"factor": -1}}))
    ).problems
    assert "a factor is not negative" in str(problem), "another reward than the first"


def test_columns_reach_the_trial_and_are_told(job, tmp_path: Path) -> None:
    rows = [{"prompt": f"the film {n}", "ground_truth": n + 2, "level": "a"} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check(job(function("by_answer")))
    assert report.problems == ()
    facts = "\n".join(report.facts)
    assert "function checked_rewards:by_answer gave 2 and 3 on two rows" in facts
    assert "column 'ground_truth': used as metadata for rewards" in facts


def test_a_column_is_looked_for_in_the_prompts_that_the_reward_will_see(job, tmp_path) -> None:
    with_truth = {"prompt": "the film", "ground_truth": 1}
    (tmp_path / "more.jsonl").write_text(json.dumps(with_truth) + "\n")
    config = job(function("by_answer"), function("by_answer"))
    section = config.prompts.model_copy(update={"path": str(tmp_path / "more.jsonl")})
    problems = check(config.model_copy(update={"prompts": section})).problems
    assert [problem.value for problem in problems] == [
        "evaluation.judge: checked_rewards:by_answer reads 'ground_truth'",
        "evaluation.training_rewards: checked_rewards:by_answer reads 'ground_truth'",
    ]
    assert "or set evaluation.training_rewards to false" in problems[1].way_out


def test_a_judge_is_called_as_well(job) -> None:
    [problem] = check(job(function("right"), function("faulty"))).problems
    assert "raised KeyError: 'answer'" in str(problem)


def test_a_service_is_asked_for_two_rows_before_anything_starts(job, monkeypatch) -> None:
    with reward_service() as service:
        report = check(job({"http": service.url}))
        assert report.problems == ()
        (request,) = service.requests
    assert [prompt.strip() for prompt in request["prompts"]] == ["the film 0", "the film 1"]
    facts = "\n".join(report.facts)
    assert f"labeling.reward: service {service.url} gave " in facts
    assert "scores are made again when these change: its `url`" in facts
    [problem] = check(job({"http": service.url})).problems  # it has ended by now
    assert f"reward service {service.url} could not be reached" in str(problem)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert check(job({"http": service.url})).problems == ()


def test_a_service_that_answers_wrongly_or_needs_a_variable_is_a_problem(job) -> None:
    texts = Answer(change=lambda rewards: list(map(str, rewards)))
    with reward_service(lambda _n, _c: texts) as service:
        [problem] = check(job({"http": service.url})).problems
        assert "not a number" in str(problem)
        assert '{"rewards": [...]}' in str(problem)
        secret = {"url": service.url, "headers_from_environment": {"X-Key": "NO_SUCH_VARIABLE"}}
        [problem] = check(job({"http": secret})).problems
        assert "NO_SUCH_VARIABLE, the value of the header X-Key, is not set" in str(problem)
    busy = Answer(503)
    with reward_service(lambda number, _c: busy if number < 2 else Answer()) as service:
        assert check(job(function("right"), {"http": service.url})).problems == ()


def test_check_says_what_the_evaluation_asks_of_the_training_rewards(job) -> None:
    asked = "labeling.reward scores 8 completions a held-out prompt, too, also service over HTTP"
    with reward_service() as service:
        http = {"http": service.url, "name": "service"}
        assert any(asked in fact for fact in check(job(http, function("right"))).facts)
    assert not any("held-out prompt, too" in fact for fact in check(job(function("right"))).facts)


def test_the_column_of_chosen_completions_is_looked_for(job, tmp_path: Path) -> None:
    config = job({"function": "checked_rewards:right"})
    values = config.model_dump(mode="json", exclude_unset=True)
    values["labeling"]["pairs"] = {"builder": "data_chosen", "max_chosen_tokens": 16}
    config = config_from_values(values, "test")
    assert "bring no columns beside the prompt" in str(check(config).problems)
    row = {"prompt": "the film", "chosen": " was good"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    assert not check(config).problems
    values["labeling"]["pairs"] = {"builder": "data_chosen", "max_chosen_tokens": 100_000}
    problems = str(check(config_from_values(values, "test")).problems)
    assert "labeling.pairs.max_chosen_tokens" in problems
