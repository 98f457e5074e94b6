"""The configurations and entry points of jobs/, as they are shipped."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raydpo.config.file import config_from_values, config_to_yaml, load_config

ROOT = Path(__file__).parents[3]
JOBS = ROOT / "jobs"
CONFIGS = sorted(JOBS.glob("*.yaml"))
ENTRY_POINTS = ["demo.py", "offline_dpo.py", "online_dpo.py", "sft.py"]


def run_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=400
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = load_config(path)
    assert config_from_values(yaml.safe_load(config_to_yaml(config)), "resolved") == config


def test_no_two_jobs_write_into_one_run_directory() -> None:
    names = [load_config(path).name for path in CONFIGS]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_jobs_that_a_comment_names_are_there(path: Path) -> None:
    for name in re.findall(r"jobs/[\w.]+\.(?:yaml|py)", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", ["demo.yaml", "offline_dpo.yaml", "online_dpo.yaml"])
def test_the_local_jobs_need_nothing_but_the_repository(name: str) -> None:
    config = load_config(JOBS / name)
    assert config.prompts is not None
    assert config.labeling is not None
    assert config.evaluation is not None
    paths = [config.model.path, config.prompts.path, config.evaluation.prompts.path]
    paths += [str(r.classifier) for r in (*config.labeling.reward, *config.evaluation.judge)]
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_online_study_compares_as_many_samples_and_steps() -> None:
    one_round = runpy.run_path(str(JOBS / "online_study.py"))["one_round"]

    rounds = load_config(JOBS / "online_dpo.yaml")
    offline = load_config(JOBS / "online_dpo.yaml", one_round(rounds)[1::2])
    assert rounds.online is not None
    assert offline.online is not None
    assert rounds.online.prompts_per_round is not None
    assert offline.online.rounds == 1
    assert offline.online.prompts_per_round == 3 * rounds.online.prompts_per_round
    assert offline.name != rounds.name


def test_the_imdb_job_starts_from_what_its_sft_job_makes() -> None:
    sft = load_config(JOBS / "sft_imdb_gpt2_large.yaml")
    job = load_config(JOBS / "imdb_gpt2_large.yaml")
    assert job.model.path == f"{sft.output}/{sft.name}/sft/policy/model"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_are_thin(name: str) -> None:
    assert len((JOBS / name).read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.thorough
def test_an_override_reaches_the_configuration(tmp_path: Path) -> None:
    done = run_job(
        "jobs/offline_dpo.py",
        *("--config", "jobs/offline_dpo.yaml", "--set", f"output={tmp_path}"),
        *("--set", "training.learning_rat=1"),
    )
    assert done.returncode == 1
    assert "did you mean 'learning_rate'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["offline_dpo.py", "sft.py"])
def test_a_missing_configuration_is_one_clear_error(name: str) -> None:
    done = run_job(f"jobs/{name}", "--config", "jobs/nowhere.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: jobs/nowhere.yaml")


@pytest.mark.thorough
def test_the_demo_takes_overrides(tmp_path: Path) -> None:
    done = run_job("jobs/demo.py", "--set", f"output={tmp_path}", "--set", "training.epochs=-1")
    assert done.returncode == 1
    assert "training.epochs" in done.stderr
