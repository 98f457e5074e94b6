"""`raydpo check` refuses judges that cannot work before a cluster is asked for anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.check.job import check
from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError
from raydpo.labeling import asking
from tests.unit.labeling.judge_server import JudgeServer, judge_server

pytestmark = pytest.mark.thorough


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """A job that a judge labels, with a template in rubric.j2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asking, "_FIRST_WAIT_SECONDS", 0.002)
    rows = [{"prompt": f"the film {n}", "answer": f"[q={n}] a"} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(
        server: JudgeServer, template: str | None = None, place: str = "labeling", **judge: Any
    ) -> Config:
        if template is not None:
            (tmp_path / "rubric.j2").write_text(template)
        rubric = "dialogue" if template is None else "rubric.j2"
        asked = {"url": server.url, "model": "planted", "rubric": rubric, **judge}
        values: dict[str, Any] = {
            "name": "job",
            "output": str(tmp_path / "runs"),
            "model": str(tiny_model),
            "prompts": {"path": "prompts.jsonl", "max_prompt_tokens": 32},
            "sampling": {"max_completion_tokens": 32},
            "labeling": {"reward": {"judge": asked}},
        }
        if place == "evaluation":
            values["evaluation"] = {"prompts": "prompts.jsonl", "judge": {"judge": asked}}
        return config_from_values(values, "test")

    return make


def problems(config: Config) -> str:
    return "\n".join(map(str, check(config).problems))


def test_a_judge_passes_its_self_test_and_nothing_is_written(job, tmp_path: Path) -> None:
    with judge_server() as server:
        report = check(job(server, mode="pairwise"))
    assert report.problems == ()
    facts = "\n".join(report.facts)
    assert (
        "labeling.reward: judge planted prefers the better planted answer: planted 4 of 4" in facts
    )
    assert "made again when these change: its rubric, its models" in facts
    assert len(server.requests) == 8
    assert not (tmp_path / "runs").exists()


def test_a_judge_that_cannot_tell_better_from_worse_is_refused(job) -> None:
    with judge_server(bias=1.0) as server:
        assert "planted fails its self-test: it tells apart only 0 of 4" in problems(
            job(server, mode="pairwise")
        )
        assert problems(job(server, mode="pairwise", self_test=False)) == ""


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ prompt }} {% if %} {{ completion }}", "rubric.j2, line 1"),
        ("{{ prompt }}", "does not contain {{ completion }}"),
        ("{{ prompt }} {{ completion }} {{ truth }}", "reads 'truth'"),
        ("{{ prompt }} {{ completion }} {{ answer }}", "its cases have no 'answer'"),
    ],
)
def test_a_template_that_cannot_be_asked_is_refused(job, template: str, said: str) -> None:
    with judge_server() as server:
        self_test = {"self_test": False} if "truth" in template else {}
        assert said in problems(job(server, template, **self_test))
    assert server.requests == []


def test_a_template_with_a_column_of_the_data_is_accepted(job) -> None:
    template = "{{ prompt }} {{ answer }}\n<reply>\n{{ completion }}\n</reply>"
    with judge_server() as server:
        assert problems(job(server, template, self_test=False)) == ""


def test_a_missing_secret_and_a_judge_that_is_not_there_are_refused(job) -> None:
    headers = {"headers_from_environment": {"Authorization": "JUDGE_AUTHORIZATION_OF_TEST"}}
    with judge_server() as server:
        assert "JUDGE_AUTHORIZATION_OF_TEST" in problems(job(server, **headers))
        assert server.requests == []
    gone = problems(job(server, max_attempts=2))
    assert "judge planted at http://127.0.0.1" in gone
    assert "it answered no other row in 2 attempts" in gone


def test_what_a_section_cannot_mean_is_refused_with_its_place(job) -> None:
    server = JudgeServer("http://h/v1/chat/completions")
    with pytest.raises(ConfigError, match=r"labeling\.reward.*schedule"):
        job(server, mode="pairwise", schedule="swiss")
    with pytest.raises(ConfigError, match="its scores cannot compare two models"):
        job(server, place="evaluation", mode="pairwise")


def test_comparisons_with_a_baseline_evaluate_and_those_without_are_no_training_reward(job) -> None:
    server = JudgeServer("http://h/v1/chat/completions")
    baseline = {"schedule": "against_baseline", "baseline_column": "answer"}
    config = job(server, place="evaluation", mode="pairwise", **baseline)
    assert config.rewards_evaluated == config.labeling.reward
    assert "reads 'absent'" in problems(
        job(server, mode="pairwise", **{**baseline, "baseline_column": "absent"}, self_test=False)
    )
