"""The study of implicit rewards for real, on a few prompts: its numbers, and a run that goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(output: Path) -> str:
    command = [sys.executable, "jobs/implicit_reward.py", "--data", "demo", "--seeds", "0"]
    command += ["--limit", "48", "--output", str(output), "--plot", str(output / "plot.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_judges_of_a_tiny_study_and_a_second_run_that_has_nothing_to_do(tmp_path: Path) -> None:
    printed = run(tmp_path)
    scores = json.loads((tmp_path / "scores-demo-0.json").read_text())
    found = json.loads((tmp_path / "results.json").read_text())["demo"]
    assert found["seeds"] == [0]
    assert found["pairs"] > 0
    assert 0 < found["prompts"] < 48
    assert scores["data"] == "demo"
    judges = found["judges"]
    for name, judge in judges.items():
        assert 0 <= judge["accuracy"]["mean"] <= 1, name
        assert f"| {name} |" in printed
    for name in ("DPO's implicit reward", "reward model"):
        margins = scores["margins"][name]
        assert len(margins) == found["pairs"]
        right = sum((margin > 0) + (margin == 0) / 2 for margin in margins) / len(margins)
        assert judges[name]["by_seed"] == [pytest.approx(right)]
    assert (tmp_path / "plot.png").exists()
    before = (tmp_path / "scores-demo-0.json").read_bytes()
    again = run(tmp_path)
    assert "demo, seed 0:" not in again
    assert (tmp_path / "scores-demo-0.json").read_bytes() == before
