"""The Python API without a cluster: load and check jobs, read runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import raydpo
from raydpo.core.errors import ConfigError, DataError, RunError
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, commit_files, open_stage, write_part
from raydpo.core.storage import Folder

JOB = {"name": "t", "model": "org/m", "preferences": "p.jsonl", "training": {"objective": "ipo"}}


def row(name: str) -> dict[str, Any]:
    return {"example_id": name, "token_ids": [1, 2], "prompt_tokens": 1}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two rounds: a table in two parts with a refused row, and a policy's metrics."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(JOB))
    stage = Stage(
        Place(Folder(str(tmp_path / "round-000/examples")), "test"), "examples", "examples", {}, {}
    )
    open_stage(stage)
    refused = [{"stage": "examples", "id": "d", "reason": "too long", "row": "{}"}]
    write_part(stage, 0, PartResult([row("a"), row("b")], counts={"input": 2}))
    write_part(stage, 1, PartResult([row("c")], refused, counts={"input": 2}))
    commit(stage, {})
    policy = Stage(Place(Folder(str(tmp_path / "round-001/policy")), "test"), "train", None, {}, {})
    open_stage(policy)
    policy.folder.write_bytes("metrics.jsonl", b'{"step": 1, "loss": 0.5}\n')
    policy.folder.write_bytes("model/config.json", b"{}")
    commit_files(policy, "hash")
    place = Place(Folder(str(tmp_path / "round-001/evaluation")), "test")
    evaluation = Stage(place, "evaluate", None, {}, {})
    open_stage(evaluation)
    evaluation.folder.write_bytes("plots/scores.png", b"\x89PNG")
    evaluation.folder.write_bytes("report.html", b"<html>")
    commit_files(evaluation, "hash")
    return tmp_path


def test_a_run_is_read_as_arrow_and_pandas(run: Path) -> None:
    found = raydpo.open_run(str(run))
    assert found.rounds == [0, 1]
    assert (found.tables(0), found.tables(1)) == (["examples"], [])
    assert found.arrow("examples").to_pylist() == [row("a"), row("b"), row("c")]
    assert list(found.pandas("examples")["example_id"]) == ["a", "b", "c"]
    assert found.counts("examples") == {"input": 4, "output": 3, "quarantined": 1}
    assert [refused["reason"] for refused in found.refused("examples")] == ["too long"]
    assert found.training_metrics(1) == [{"step": 1, "loss": 0.5}]
    assert found.figures(1) == {"scores": b"\x89PNG"}
    assert found.policy(1).path == f"{run}/round-001/policy/model"
    assert found.config.training is not None
    assert found.config.training.objective.name == "ipo"


def test_what_is_not_finished_or_damaged_is_refused(run: Path, tmp_path: Path) -> None:
    found = raydpo.open_run(str(run))
    with pytest.raises(RunError, match="finished tables of round 0 are: examples"):
        found.arrow("candidates")
    with pytest.raises(RunError, match="is not a run directory"):
        raydpo.open_run(str(run / "round-000"))
    part = run / "round-000/examples/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"part-00001\.parquet"):
        found.arrow("examples")


def test_a_job_is_loaded_from_a_file_or_from_values(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(JOB))
    job = raydpo.load_job(file, ["training.learning_rate=1e-5"])
    assert job.training is not None
    assert job.training.learning_rate == 1e-5
    assert raydpo.load_job(JOB).name == "t"
    with pytest.raises(ConfigError, match="learning_rat"):
        raydpo.load_job(JOB | {"training": {"learning_rat": 1.0}})
    with pytest.raises(TypeError, match="overrides are for files"):
        raydpo.load_job(JOB, ["name=x"])


def test_problems_are_found_and_stop_a_run_before_it_starts(tmp_path: Path) -> None:
    job = raydpo.load_job(JOB | {"model": str(tmp_path), "preferences": str(tmp_path / "none")})
    problems = raydpo.check_job(job)
    assert problems
    with pytest.raises(type(problems[0])) as raised:
        raydpo.run_job(job, log=False)
    assert str(raised.value) == str(problems[0])


def test_importing_raydpo_loads_nothing_heavy() -> None:
    program = (
        "import sys, raydpo; print({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
