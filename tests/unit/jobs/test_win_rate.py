"""The win-rate study: rows, statistics and tables on planted data, and what is left to do."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.evaluation.best_of import pools_of
from raydpo.evaluation.samples import Sample
from tests.unit.jobs.job_modules import modules_of

PROMPTS = [f"p{index:02d}" for index in range(30)]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    names = ("plot", "points", "policies", "statistics", "tables")
    with modules_of("winrate", names) as found:
        found.study = importlib.import_module("win_rate")
        yield found


def samples(scores: dict[str, list[float]]) -> list[Sample]:
    return [
        Sample(prompt, k, prompt, "x", (k, len(prompt)), "stop", score, {})
        for prompt, some in scores.items()
        for k, score in enumerate(some)
    ]


def row(
    jobs: Any, method: str, temperature: float, seed: int, wins: list[float], **more: Any
) -> Any:
    values: dict[str, Any] = {
        "figure": "temperature",
        "n": 1,
        "prompts": PROMPTS[: len(wins)],
        "ties": [0.0] * len(wins),
        "scores": wins,
        "tokens": [30.0] * len(wins),
        "kl": None,
        "completions": 8 * len(wins),
    }
    return jobs.points.WinRow(
        method=method, temperature=temperature, seed=seed, wins=wins, **{**values, **more}
    )


def test_rows_of_single_samples_and_of_the_best_by_hand(jobs: Any) -> None:
    ours = samples({"a": [0.1, 0.5, 0.9, 0.5]})
    rewards = {("a", k): float(k) for k in range(4)}
    pools = pools_of(ours, rewards, samples({"a": [0.5, 0.2]}))
    single = jobs.points.row_of("temperature", "DPO", 1, 0.5, 0, pools)
    # Against 0.5 and 0.2: 0 wins; a tie and a win; two wins; a tie and a win.
    assert single.wins == pytest.approx([(0 + 1.5 + 2 + 1.5) / 8])
    assert single.ties == pytest.approx([2 / 8])
    assert single.kl is None
    best = jobs.points.row_of("temperature", "best of N", 4, 1.0, 0, pools)
    assert best.wins == pytest.approx([0.75])
    assert best.kl == pytest.approx([np.log(4) - 3 / 4])
    assert best.label == "best of 4"


def test_the_best_of_n_greedy_completions_is_the_greedy_one(jobs: Any) -> None:
    pools = pools_of(samples({"a": [0.4]}), {("a", 0): 1.0}, samples({"a": [0.1, 0.6, 0.7]}))
    for n in (1, 4, 16):
        found = jobs.points.row_of("temperature", "best of N", n, 0.0, 0, pools)
        assert (found.wins, found.kl) == (pytest.approx([1 / 3]), None)


def test_intervals_hold_the_truth_with_prompts_and_seeds_that_differ(jobs: Any) -> None:
    """Planted: prompts that all seeds share, seeds that all prompts share, and noise."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        prompts = rng.normal(0, 0.15, 30)
        rows = [
            row(
                jobs, "DPO", 1.0, seed,
                (0.6 + prompts + rng.normal(0, 0.01) + rng.normal(0, 0.05, 30)).tolist(),
            )
            for seed in range(3)
        ]  # fmt: skip
        [setting] = jobs.statistics.settings_of(rows, "temperature")
        low, high = setting.mean("wins").ci95
        held += low <= 0.6 <= high
    assert held >= 180  # 95 % of 200 are 190; three times as many prompts would hold 75 %


def test_prompts_do_not_count_once_for_each_seed(jobs: Any) -> None:
    wins = np.random.default_rng(1).uniform(0, 1, 30).tolist()
    one = jobs.statistics.settings_of([row(jobs, "DPO", 1.0, 0, wins)], "temperature")[0]
    three = jobs.statistics.settings_of(
        [row(jobs, "DPO", 1.0, seed, wins) for seed in range(3)], "temperature"
    )[0]
    assert three.mean("wins").standard_error == pytest.approx(one.mean("wins").standard_error)


def planted(jobs: Any) -> list[Any]:
    """DPO falls by 10 points from greedy to 1.25, policy gradient by 40; prompts spread widely."""
    spread = np.random.default_rng(2).normal(0, 0.1, 30)
    rows: list[Any] = []
    for seed in (0, 1, 2):
        for method, fall in (("DPO", 0.1), ("policy gradient", 0.4)):
            for t in (0.0, 1.0, 1.25):
                noise = np.random.default_rng(seed).normal(0, 0.01, 30)
                wins = np.clip(0.9 - fall * t / 1.25 + 0.3 * spread + noise, 0, 1)
                rows.append(row(jobs, method, t, seed, wins.tolist(), ties=[0.125] * 30))
    return rows


def test_changes_with_temperature_are_paired_and_compared(jobs: Any) -> None:
    methods = jobs.statistics.by_label(jobs.statistics.settings_of(planted(jobs), "temperature"))
    dpo, gradient = methods["DPO"], methods["policy gradient"]
    change = gradient[1.25].minus(gradient[0.0])
    assert change.mean == pytest.approx(-0.4, abs=0.01)
    assert change.standard_error < 0.005  # the spread of the prompts is in both, and cancels
    beside = gradient[1.25].change_beside(gradient[0.0], dpo[1.25], dpo[0.0])
    assert beside.mean == pytest.approx(-0.3, abs=0.01)


def test_seeds_that_only_one_side_has_do_not_count_in_a_difference(jobs: Any) -> None:
    rows = [row(jobs, "DPO", t, seed, [0.5 + t / 4] * 4) for t in (0.0, 1.0) for seed in (0, 1)]
    rows.append(row(jobs, "DPO", 1.0, 2, [0.0] * 4))
    own = jobs.statistics.by_label(jobs.statistics.settings_of(rows, "temperature"))["DPO"]
    assert own[1.0].minus(own[0.0]).mean == pytest.approx(0.25)
    lonely = jobs.statistics.settings_of([row(jobs, "DPO", 0.0, 5, [0.5])], "temperature")[0]
    assert own[1.0].minus(lonely) is None


def test_tables_and_figure_show_every_method(jobs: Any, tmp_path: Path) -> None:
    curve = [
        row(jobs, "best of N", 1.0, s, [0.5 + 0.1 * n] * 9, figure="curve", n=n, kl=[0.1 * n] * 9)
        for n in (1, 4)
        for s in (0, 1)
    ]
    text = "\n".join(
        line for lines in jobs.tables.tables([*planted(jobs), *curve]) for line in lines
    )
    assert "| `DPO` | 3 | 8" in text
    assert "12.50" in text  # ties
    assert "-40.0 [" in text
    assert "| 4 | 2 | 90.0" in text
    jobs.plot.draw([*planted(jobs), *curve], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_results_are_read_without_a_line_that_was_cut_short(jobs: Any, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    rows = planted(jobs)[:2]
    jobs.points.append(file, rows)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write('{"figure": "temp')
    assert jobs.points.read_rows(file) == rows


def test_what_has_rows_is_not_done_again(jobs: Any) -> None:
    options = argparse.Namespace(seeds=[0, 1], methods=["DPO"])
    every = list(jobs.study._all_work(options))
    assert [work.what for work in every] == ["pi_ref", "DPO", "pi_ref", "DPO", "curve", "curve"]
    best = row(jobs, "best of N", 0.5, 1, [0.5], n=4)
    assert jobs.study._work_of(best) == every[2]
    assert jobs.study._work_of(row(jobs, "best of N", 1.0, 0, [0.5], figure="curve")) == every[4]


def test_a_policy_that_is_not_there_is_none(jobs: Any, tmp_path: Path) -> None:
    assert jobs.policies.policy_of(tmp_path, "DPO", 0) is None
