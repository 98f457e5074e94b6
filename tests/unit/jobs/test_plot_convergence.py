"""The job that plots where objectives lead: its table and its picture."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

JOBS = Path(__file__).parents[3] / "jobs"


def test_consistent_objectives_end_at_the_optimum_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plot.png"
    monkeypatch.setattr(sys, "argv", ["plot_convergence.py", "--output", str(picture)])
    runpy.run_path(str(JOBS / "plot_convergence.py"))["main"]()
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = {line[:32].strip(): line[32:].split() for line in capsys.readouterr().out.splitlines()}
    for name in ("dpo", "robust, 20% flipped", "plackett_luce, K = 4", "best_of_k, K = 4"):
        assert table[name] == ["under", "1e-15", "under", "1e-15"]
    for name in ("dpo, 20% flipped", "cdpo, e = 0.2", "exo, e = 0.1", "apo_zero"):
        assert float(table[name][1]) > 1e-3
