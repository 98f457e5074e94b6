"""The policies of the study: those of a frontier study's run directories, or its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frontier.points import points
from grid.points import Settings
from grid.results import read_rows
from grid.runs import RESULTS_FILE, Work, run_all
from raydpo.config.job import ModelConfig
from raydpo.core.errors import RunError
from raydpo.core.run import read_manifest, round_folder
from raydpo.pipeline.results import open_run
from winrate.points import TRAINED


def train_policies(folder: Path, methods: Sequence[str], seeds: Sequence[int], quick: bool) -> None:
    """Train what the folder lacks, as the frontier study does.

    Args:
        folder: of the run directories.
        methods: keys of `TRAINED`.
        seeds: of the jobs.
        quick: cut the jobs to a few prompts and steps.
    """
    wanted = {TRAINED[method] for method in methods}
    chosen = [point for point in points() if point.name in wanted]
    run_all(Settings(folder, (), quick), [Work(p, seed) for seed in seeds for p in chosen])


def policy_of(folder: Path, method: str, seed: int) -> ModelConfig | None:
    """Return the policy of a method's finished run, after rounds the last; None if there is none."""
    name = TRAINED[method]
    try:
        run = open_run(str(folder / f"seed-{seed}" / name))
    except RunError:
        return None
    if run.config.online is not None and (name, seed) not in _ended(folder):
        return None
    done = [r for r in run.rounds if read_manifest(round_folder(run.folder, r).child("policy"))]
    return run.policy(done[-1]) if done else None


def _ended(folder: Path) -> set[tuple[str, int]]:
    """Return names and seeds of the runs whose last round is among the study's results."""
    return {(Path(r.run).name, r.seed) for r in read_rows(folder / RESULTS_FILE) if r.last}
