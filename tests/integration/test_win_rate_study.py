"""The win-rate study for real, on a few prompts: samples, judges, rows; and a run that goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.file import config_to_yaml, load_config
from raydpo.core.place import Place
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import Folder
from tests.conftest import ROOT
from tests.unit.jobs.job_modules import modules_of

pytestmark = pytest.mark.slow


def make_policy(folder: Path) -> None:
    """A finished run of the frontier study, whose policy is the reference itself."""
    config = load_config(str(ROOT / "jobs/demo.yaml"), [])
    run = folder / "seed-0" / "dpo-beta-0.1"
    stage = Stage(
        Place(Folder(str(run / "round-000" / "policy")), "test"), "policy", None, {"a": "b"}, {}
    )
    open_stage(stage)
    shutil.copytree(ROOT / "assets/review-lm", run / "round-000" / "policy" / "model")
    commit_files(stage, "policy")
    (run / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")


def run(output: Path, policies: Path) -> str:
    command = [sys.executable, "jobs/win_rate.py", "--quick", "--seeds", "0", "--methods", "DPO"]
    command += ["--temperatures", "0", "1", "--policies", str(policies), "--output", str(output)]
    command += ["--plot", str(output / "plot.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_rows_of_a_tiny_study_and_a_second_run_that_has_nothing_to_do(tmp_path: Path) -> None:
    make_policy(tmp_path / "policies")
    output = tmp_path / "study"
    run(output, tmp_path / "policies")
    with modules_of("winrate", ("points",)) as found:
        rows: list[Any] = found.points.read_rows(output / "results.jsonl")
    by = {(r.figure, r.method, r.n, r.temperature): r for r in rows}
    assert len(by) == len(rows) == 3 + 2 * 3 + 2
    greedy = by["temperature", "pi_ref", 1, 0.0]
    assert greedy.completions == 6
    assert by["temperature", "best of N", 16, 0.0].wins == greedy.wins
    assert by["temperature", "DPO", 1, 0.0].scores == pytest.approx(greedy.scores, abs=1e-5)
    assert by["temperature", "DPO", 1, 1.0].completions == 2 * 6
    curve = [by["curve", "best of N", n, 1.0] for n in (1, 2, 4)]
    assert sum(curve[0].kl) == 0 < sum(curve[1].kl) < sum(curve[2].kl)
    assert (output / "plot.png").exists()
    before = (output / "results.jsonl").read_bytes()
    assert "[study] 0 of 3 are left" in run(output, tmp_path / "policies")
    assert (output / "results.jsonl").read_bytes() == before
