"""`raydpo check` tries the ends of stages: what would fail after hours fails now."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from raydpo.check.job import check
from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from raydpo.core.errors import ConfigError, ModelError
from raydpo.evaluation.rehearsal import rehearse_report

pytestmark = pytest.mark.thorough

PAIR = {"prompt": "the film was", "chosen": " good", "rejected": " bad"}


class Space(NamedTuple):
    """What `shutil.disk_usage` says."""

    total: int
    used: int
    free: int


def job(folder: Path, model: Path, **changes: Any) -> Config:
    (folder / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    lengths = {"max_prompt_tokens": 64, "max_completion_tokens": 64}
    values = {
        "name": "job",
        "output": str(folder / "runs"),
        "model": str(model),
        "preferences": {"path": str(folder / "pairs.jsonl"), **lengths},
        "training": {},
    }
    return config_from_values({**values, **changes}, "test")


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "a model#1%20")


def edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_a_generation_config_that_is_not_saved_is_found_before_training(model, tmp_path) -> None:
    assert check(job(tmp_path, model)).problems == ()
    edit(model / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    (problem,) = check(job(tmp_path, model)).problems
    assert isinstance(problem, ModelError)
    assert problem.value.startswith(f"{model}/generation_config.json")
    assert "`temperature`" in problem.value
    assert "do_sample=True" in problem.value


def test_an_output_layer_that_the_config_denies_is_told_of(liar, model, tmp_path) -> None:
    for folder, told in ((liar, 1), (model, 0)):
        facts = check(job(tmp_path, folder)).facts
        assert sum("lm_head of its own" in fact for fact in facts) == told


def test_a_job_that_trains_nothing_saves_nothing(model, tmp_path) -> None:
    edit(model / "generation_config.json", temperature=0.9)
    assert check(job(tmp_path, model, training=None)).problems == ()


def test_a_chat_template_named_from_here_is_found_from_elsewhere(
    model, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jinja").write_text("{{ messages[0].content }}")
    config = job(tmp_path, model)
    values = {**config.model_dump(), "model": {"path": model.name, "chat_template": "own.jinja"}}
    assert check(config_from_values(values, "test")).problems == ()


def test_a_report_that_cannot_be_rendered_is_found_before_sampling(
    model, tmp_path, monkeypatch
) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "the film"}) + "\n")
    evaluation = {
        "prompts": {"path": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 16},
        "judge": {"function": "json:dumps"},
    }
    sampling = {"max_completion_tokens": 16}
    config = job(tmp_path, model, evaluation=evaluation, sampling=sampling)
    assert config.evaluation is not None
    rehearse_report(config, config.evaluation)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert any("the report cannot be made" in str(problem) for problem in check(config).problems)


@pytest.mark.parametrize(
    ("free", "place"),
    [
        ({"runs": 10**6}, "(output)"),
        ({"tmp": 10**4}, "(the temporary folder)"),
    ],
)
def test_disks_that_are_too_small_are_refused(
    model, tmp_path, monkeypatch, free: dict[str, int], place: str
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)

    def usage(path: Path) -> Space:
        name = "tmp" if path == temporary else "runs"
        return Space(0, 0, free.get(name, 10**12))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    (problem,) = check(job(tmp_path, model)).problems
    assert isinstance(problem, ConfigError)
    assert problem.value.endswith(place)


def test_what_a_run_holds_already_needs_no_more_space(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Space(0, 0, 3 * 10**6))
    config = job(tmp_path, model)
    assert "GiB to" in check(config).problems[0].value
    folder = tmp_path / "runs/job/round-000/policy/checkpoints"
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(b"0" * 10**7)
    assert check(config).problems == ()


def test_what_is_set_aside_takes_room_until_it_is_cleaned(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Space(0, 0, 3 * 10**6))
    config = job(tmp_path, model)
    run = tmp_path / "runs/job"
    folder = run / "round-000.set-aside-20260131-235959/policy/checkpoints"
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(b"0" * 10**7)
    found = check(config)
    assert found.problems[0].way_out.startswith(f"`raydpo clean {run}` frees 0.01 GiB; else make")
    (fact,) = [fact for fact in found.facts if fact.startswith("disk: ")]
    assert f"; 0.01 GiB are set aside there, which `raydpo clean {run}` frees" in fact


def test_an_adapter_of_a_tied_layer_is_refused(model, tmp_path) -> None:
    training = {"lora": {"rank": 2, "target_modules": ["lm_head", "q_proj"]}}
    (problem,) = check(job(tmp_path, model, training=training)).problems
    assert "adapts one of two tied layers" in problem.value
    training["lora"]["target_modules"] = ["q_proj"]
    assert check(job(tmp_path, model, training=training)).problems == ()


def test_a_name_that_no_layer_has_is_refused_before_training(model, tmp_path) -> None:
    training = {"lora": {"target_modules": ["query"]}}
    (problem,) = check(job(tmp_path, model, training=training)).problems
    assert "lora.target_modules" in problem.value


def test_an_output_that_is_a_file_is_refused(model, tmp_path) -> None:
    (tmp_path / "runs").write_text("")
    (problem,) = check(job(tmp_path, model)).problems
    assert "cannot be written" in problem.value
