"""The frontier study for real, on a few prompts and steps: shared stages, its rows, an interruption."""

from __future__ import annotations

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
            grid.points.offline("ipo", "tau 0.3", {"name": "ipo", "tau": 0.3}),
        ]
        study = grid.points.Settings(tmp_path, quick=True)
        work = grid.runs.in_order(points, [0])
        add = grid.results.append

        def killed_at_the_third(file: Path, rows: list[Any]) -> None:
            if rows[0].method == "ipo":
                raise KeyboardInterrupt
            add(file, rows)

        monkeypatch.setattr(grid.runs, "append", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            grid.runs.run_all(study, work)
        asked = sampled(caplog.messages)
        policies = [tmp_path / f"seed-0/{p.name}/round-000/policy" for p in points[1:]]
        before = [files_of(policy) for policy in policies]
        monkeypatch.setattr(grid.runs, "append", add)
        caplog.clear()
        rows = grid.runs.run_all(study, work)

    # The first run sampled for preferences and for both evaluations; the second for its policy.
    assert len(asked) == 4
    assert sum("policy samples" in stage for stage in asked) == 2
    assert [row.method for row in rows] == ["pi_ref", "dpo", "ipo"]
    assert [files_of(policy) for policy in policies] == before
    assert sampled(caplog.messages) == []
    assert not any("starting 1 engine" in line for line in caplog.messages)
    of_product = compare_runs([row.run for row in rows[1:]], resamples=100)
    for row, other in zip(rows[1:], of_product["runs"], strict=True):
        assert row.mean("score") == pytest.approx(other["score"]["mean"])
        assert row.mean("kl") == pytest.approx(other["kl_nats_per_completion"]["mean"])
        assert row.mean("tokens") == pytest.approx(other["completion_tokens"]["mean"])
        assert row.curve["step"][0] == 0
    reference = of_product["runs"][0]["reference_score"]["mean"]
    assert rows[0].mean("score") == pytest.approx(reference)
    assert rows[0].mean("kl") == 0
