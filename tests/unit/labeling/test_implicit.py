"""Implicit rewards: log-ratios of the run's own model to its reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from raydpo.check.job import check
from raydpo.config.file import config_from_values
from raydpo.config.job import EvaluationConfig, LabelingConfig, ModelConfig, RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.core.storage import folder_of
from raydpo.labeling.implicit import implicit_scores, refuse_equal_models
from tests.conftest import make_tiny_model


def logps(name: str, *lists: list[float]) -> dict:
    return {"group_id": name, "reference_token_logps": list(lists)}


def table(folder: Path, name: str, parts: list[list[dict]]):
    from raydpo.core.parts import Table

    stage = Stage(Place(folder_of(str(folder)), "test"), "test", name, {"rows": str(parts)}, {})
    open_stage(stage)
    for index, rows in enumerate(parts):
        write_part(stage, index, PartResult(rows))
    return Table(stage.folder, commit(stage, {}))


def test_each_candidate_gets_the_log_ratio_summed_over_its_tokens(tmp_path, make_candidate) -> None:
    candidates = [[make_candidate("a", 0), make_candidate("a", 1)], [make_candidate("b", 0)]]
    policy = [[logps("a", [-1.0, -2.0], [-0.5])], [logps("b", [-4.0])]]
    reference = [[logps("a", [-2.0, -2.5], [-0.25])], [logps("b", [-4.0])]]
    scores = implicit_scores(
        Place(folder_of(str(tmp_path / "scores")), "test"),
        candidates=table(tmp_path / "c", "candidates", candidates),
        policy_logps=table(tmp_path / "p", "reference", policy),
        reference_logps=table(tmp_path / "r", "reference", reference),
        reward=RewardConfig(implicit=True),
    )
    found = {
        (row["prompt_id"], row["candidate"]): row["value"]
        for row in read_rows(scores.folder, scores.manifest)
    }
    assert found == {("a", 0): 1.5, ("a", 1): -0.25, ("b", 0): 0.0}


def test_a_policy_that_is_its_own_reference_is_refused(tiny_model, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    with pytest.raises(ConfigError, match="the same weights"):
        refuse_equal_models(ModelConfig(path=str(tiny_model)), ModelConfig(path=str(copy)))
    other = make_tiny_model(tmp_path / "other", seed=1)
    refuse_equal_models(ModelConfig(path=str(tiny_model)), ModelConfig(path=str(other)))


def test_check_says_it_too(tiny_model, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the film"}\n')
    values = {
        "name": "run",
        "output": str(tmp_path),
        "model": str(tiny_model),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "sampling": {"max_completion_tokens": 8},
        "labeling": {"reward": {"implicit": True}},
    }
    values["prompts"] = {"path": values["prompts"], "max_prompt_tokens": 16}
    problems = check(config_from_values(values, "test")).problems
    assert ["the same weights" in str(problem) for problem in problems] == [True]
    values["reference"] = {"model": str(make_tiny_model(tmp_path / "other", seed=1))}
    report = check(config_from_values(values, "test"))
    assert report.problems == ()
    assert any("log-ratio to reference.model" in fact for fact in report.facts)


def test_an_implicit_reward_stands_alone_and_judges_nobody() -> None:
    implicit = RewardConfig(implicit=True)
    assert implicit.scorer == "implicit"
    with pytest.raises(ValidationError, match="stands alone"):
        LabelingConfig(reward=(implicit, RewardConfig(function="a:b")))
    with pytest.raises(ValidationError, match="does not judge itself"):
        EvaluationConfig.model_validate({"prompts": "p.jsonl", "judge": {"implicit": True}})
    with pytest.raises(ValidationError, match="exactly one"):
        RewardConfig(implicit=True, function="a:b")
