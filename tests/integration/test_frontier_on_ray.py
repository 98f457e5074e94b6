"""The frontier study for real, on a few prompts and steps: shared stages, its rows, an interruption."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from raydpo import compare_runs
from raydpo.core.progress import logger
from tests.unit.jobs.job_modules import modules_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def files_of(folder: Path) -> dict[str, int]:
    """When each file of a folder was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def sampled(messages: list[str]) -> list[str]:
    """The stages that asked the engines for completions."""
    return [line.split("]")[0] for line in messages if " completions, " in line]


def test_points_share_their_seeds_stages_and_a_killed_study_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger.name)
    with modules_of("grid", ("points", "results", "runs")) as grid:
        points = [
            grid.points.REFERENCE,
            grid.points.BASE,
            grid.points.Point("best_of_n", "N = 4", job=grid.points.BEST_OF_JOB, best_of=4),
            grid.points.offline("ipo", "tau 0.3", {"name": "ipo", "tau": 0.3}),
        ]
        study = grid.points.Settings(tmp_path, quick=True)
        work = grid.runs.in_order(points, [0])
        add = grid.results.append

        def killed_at_the_last(file: Path, rows: list[Any]) -> None:
            if rows[0].method == "ipo":
                raise KeyboardInterrupt
            add(file, rows)

        monkeypatch.setattr(grid.runs, "append", killed_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            grid.runs.run_all(study, work)
        asked = sampled(caplog.messages)
        policies = [
            tmp_path / f"seed-0/{p.name}/round-000/policy"
            for p in points
            if p.name in ("dpo-beta-0.1", "ipo-tau-0.3")
        ]
        before = [files_of(policy) for policy in policies]
        monkeypatch.setattr(grid.runs, "append", add)
        caplog.clear()
        rows = grid.runs.run_all(study, work)

    # The base for preferences and both evaluations, Best-of-N for both sets, IPO for its policy.
    assert len(asked) == 6
    assert sum("policy samples" in stage for stage in asked) == 2
    assert [row.method for row in rows] == ["pi_ref", "dpo", "best_of_n", "ipo"]
    assert [files_of(policy) for policy in policies] == before
    assert sampled(caplog.messages) == []
    assert not any("starting 1 engine" in line for line in caplog.messages)
    reference, dpo, best_of, ipo = rows
    of_product = compare_runs([dpo.run, ipo.run], resamples=100)
    for row, other in zip((dpo, ipo), of_product["runs"], strict=True):
        assert row.mean("score") == pytest.approx(other["score"]["mean"])
        assert row.mean("kl") == pytest.approx(other["kl_nats_per_completion"]["mean"])
        assert row.mean("tokens") == pytest.approx(other["completion_tokens"]["mean"])
        assert row.curve["step"][0] == 0
    score = of_product["runs"][0]["reference_score"]["mean"]
    assert (reference.mean("score"), reference.mean("kl")) == (pytest.approx(score), 0)
    metrics = json.loads(Path(best_of.run, "round-000/evaluation/metrics.json").read_text())
    measured = next(of for of in metrics["best_of"]["models"]["reference"] if of["n"] == 4)
    assert best_of.mean("score") == pytest.approx(measured["score"]["mean"])
    assert best_of.mean("kl") == pytest.approx(measured["kl_nats_per_completion"]["mean"])
    assert best_of.mean("reward") == pytest.approx(measured["reward"]["mean"])
