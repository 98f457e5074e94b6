"""The frontier study: its points, order of work, rows, tables and dominance on planted results."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.file import load_config
from raydpo.config.fit import check_config_fits
from tests.unit.jobs.job_modules import modules_of

PROMPTS = [f"p{index:02d}" for index in range(24)]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    names = ("points", "results", "rows", "runs", "settings")
    with (
        modules_of("grid", names) as grid,
        modules_of("frontier", ("plot", "points", "tables")) as found,
    ):
        found.grid = grid
        found.study = importlib.import_module("frontier_study")
        found.displacement = importlib.import_module("displacement_study")
        yield found


def row(
    jobs: Any,
    method: str,
    strength: str,
    seed: int,
    score: float,
    kl: float,
    turn: int = 0,
    **values: Any,
) -> Any:
    """Two completions a prompt; prompts spread by 0.2 around the score, and by 20 % around the KL.

    Rows with another `turn` are better and worse on other prompts.
    """
    spread = [((index + turn) % 5 - 2) / 10 for index in range(len(PROMPTS))]
    middle = sum(spread) / len(spread)
    means = {
        "score": [score + s - middle for s in spread],
        "kl": [kl * (1 + s - middle) for s in spread],
        "reward": [10 * score + s for s in spread],
        "reward_share": [score for _ in spread],
        "tokens": [30.0 + seed for _ in spread],
    }
    defaults = {"repetition": 0.05, "distinct_2": 0.4, "token_limit_share": 0.1}
    return jobs.grid.results.Row(
        method=method,
        strength=strength,
        seed=seed,
        run=f"runs/{method}",
        overrides=[f"seed={seed}"],
        prompts=PROMPTS,
        completions=[2] * len(PROMPTS),
        sums={name: [2 * value for value in of] for name, of in means.items()},
        **{**defaults, **values},
    )


def settings(jobs: Any) -> list[Any]:
    """`strong` beats `weak` in all seeds; `near` is `weak` but for noise; `far` costs more KL."""
    planted = {
        ("pi_ref", ""): (0.5, 0.0, 0),
        ("weak", "a"): (0.6, 4.0, 0),
        ("near", "a"): (0.601, 3.99, 2),
        ("strong", "a"): (0.8, 2.0, 0),
        ("far", "a"): (0.9, 8.0, 0),
    }
    rows = [
        row(jobs, *name, seed, score, kl, turn)
        for seed in (0, 1, 2)
        for name, (score, kl, turn) in planted.items()
    ]
    return jobs.grid.settings.settings_of(rows)


def test_every_point_is_a_job_and_has_a_folder_of_its_own(jobs: Any, tmp_path: Path) -> None:
    points = [point for point in jobs.points.points() if not point.best_of]
    every = [*points, *jobs.displacement.contenders()]
    study = jobs.grid.points.Settings(tmp_path)
    recipes = {(p.method, p.strength): study.of(p, 0) for p in every}
    assert len({p.name for p in every}) == len(recipes) == len({*recipes, *recipes})
    for point in every:
        config = study.job(point, 2)
        check_config_fits(config)
        assert (config.seed, config.name) == (2, point.name)
        assert Path(config.output) == tmp_path / "seed-2"
    methods = {point.method for point in points}
    assert {"dpo", "ipo", "f_dpo", "online_dpo", "policy_gradient", "unlikelihood"} <= methods


def test_all_jobs_sample_alike_and_have_one_judge(jobs: Any, tmp_path: Path) -> None:
    """Engines are shared, and scores are compared."""
    study = jobs.grid.points.Settings(tmp_path)
    configs = [study.job(point, 0) for point in jobs.points.points()]
    first = configs[0]
    assert first.labeling.reward[0].output == "log_odds"
    for config in configs:
        assert config.model == first.model
        assert config.sampling == first.sampling
        assert config.evaluation.judge == first.evaluation.judge
        assert config.evaluation.samples_per_prompt == first.evaluation.samples_per_prompt
        assert config.evaluation.prompts == first.evaluation.prompts


def test_the_reward_model_trains_as_its_own_job_does(jobs: Any, tmp_path: Path) -> None:
    ours = jobs.grid.points.Settings(tmp_path).job(jobs.grid.points.REWARD_MODEL, 0)
    own = load_config("jobs/reward_reviews.yaml")
    for name in ("objective", "epochs", "learning_rate", "schedule", "global_batch_groups"):
        assert getattr(ours.training, name) == getattr(own.training, name), name
    assert (ours.labeling, ours.sampling.candidates) == (own.labeling, own.sampling.candidates)
    base = jobs.grid.points.Settings(tmp_path).job(jobs.grid.points.BASE, 0)
    assert ours.heldout_fraction == base.heldout_fraction > 0
    check_config_fits(ours)


def test_a_learned_reward_is_that_of_the_same_seed(jobs: Any, tmp_path: Path) -> None:
    study = jobs.grid.points.Settings(tmp_path)
    point = next(p for p in jobs.points.points() if p.learned_reward)
    reward = study.job(point, 1).labeling.reward[0].classifier
    assert reward == str(tmp_path / "seed-1/reward_model/round-000/policy/model")


def test_an_interruption_leaves_whole_seeds_of_the_first_level(jobs: Any) -> None:
    points = jobs.points.points()
    work = jobs.grid.runs.in_order(points, [0, 1])
    assert len(work) == 2 * len(points)
    places = [(one.point.level, one.seed) for one in work]
    assert places == sorted(places)
    assert work[0].point.method == "pi_ref"


def test_options_choose_points_and_unknown_ones_are_refused(jobs: Any) -> None:
    chosen = jobs.study._chosen(["ipo"], None)
    assert {p.method for p in chosen} == {"pi_ref", "ipo"}
    assert [p.name for p in jobs.study._chosen(None, ["dpo-beta-0.3"])] == [
        "pi_ref",
        "dpo-beta-0.3",
    ]
    assert {p.level for p in jobs.study._chosen(None, None, 1)} == {1}
    with pytest.raises(SystemExit, match="ppo"):
        jobs.study._chosen(["ppo"], None)


def test_rows_come_back_and_a_line_that_was_cut_off_does_not_count(
    jobs: Any, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    first, second = row(jobs, "a", "x", 0, 0.5, 1.0), row(jobs, "b", "x", 0, 0.5, 1.0)
    jobs.grid.results.append(file, [first, second])
    assert jobs.grid.results.read_rows(file) == [first, second]
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert jobs.grid.results.read_rows(file) == [first]
    jobs.grid.results.append(file, [second])
    assert jobs.grid.results.read_rows(file) == [first, second]


def test_finished_stages_are_copied_whole_and_nothing_is_replaced(
    jobs: Any, tmp_path: Path
) -> None:
    source, target = tmp_path / "base", tmp_path / "point"
    for name, files in {"done": ("manifest.json", "part"), "begun": ("part",)}.items():
        for file in files:
            (source / name).mkdir(parents=True, exist_ok=True)
            (source / name / file).write_text("new")
    stages = {"done": "elsewhere/done", "begun": "begun", "absent": "absent"}
    jobs.grid.runs.copy_finished(source, target, stages)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "elsewhere/done/manifest.json",
        "elsewhere/done/part",
    ]
    (target / "elsewhere/done/part").write_text("own")
    jobs.grid.runs.copy_finished(source, target, stages)
    assert (target / "elsewhere/done/part").read_text() == "own"


def test_an_interval_holds_the_spread_of_prompts_and_of_seeds(jobs: Any) -> None:
    same = [row(jobs, "m", "a", seed, 0.5, 1.0) for seed in (0, 1, 2)]
    apart = [row(jobs, "m", "a", seed, 0.4 + seed / 10, 1.0) for seed in (0, 1, 2)]
    alike, spread = (jobs.grid.settings.Setting(tuple(rows)) for rows in (same, apart))
    assert alike.mean("score") == pytest.approx(0.5)
    assert spread.mean("score") == pytest.approx(0.5)
    of_prompts, of_both = alike.half_width("score"), spread.half_width("score")
    # Seeds at 0.4, 0.5, 0.6: a variance of 0.01, of the mean of three 0.01 / 3; less that of all 72
    # cells, whose squares add up to those of prompts, three times, and of seeds, 24 times.
    squares = sum((value / 2 - 0.5) ** 2 for value in same[0].sums["score"])
    of_cells = 72 / 71 * (3 * squares + 24 * 0.02) / 72**2
    more = 0.01 / 3 - of_cells
    assert of_both**2 - of_prompts**2 == pytest.approx(1.96**2 * more, rel=1e-3)


def test_dominance_takes_a_higher_score_at_less_kl_beyond_chance(jobs: Any) -> None:
    met = jobs.grid.settings.meetings(settings(jobs), resamples=500)
    found = {frozenset((m.first, m.second)): m for m in met}
    clear = found[frozenset(("weak a", "strong a"))]
    assert (clear.dominates, clear.beyond_chance, clear.seeds) == ("strong a", True, (3, 3))
    assert clear.score["ci95"][1] < 0
    same = found[frozenset(("weak a", "near a"))]
    assert not same.beyond_chance
    assert same.p_holm > 0.5
    assert found[frozenset(("strong a", "far a"))].dominates is None
    # KL and score are above those of pi_ref: neither dominates.
    assert found[frozenset(("strong a", "pi_ref"))].dominates is None


def test_seeds_that_disagree_are_counted(jobs: Any) -> None:
    rows = [row(jobs, "a", "x", seed, [0.9, 0.9, 0.5][seed], 2.0) for seed in (0, 1, 2)]
    rows += [row(jobs, "b", "x", seed, 0.6, 3.0) for seed in (0, 1, 2)]
    (met,) = jobs.grid.settings.meetings(jobs.grid.settings.settings_of(rows), resamples=500)
    assert (met.dominates, met.seeds, met.beyond_chance) == ("a x", (2, 3), False)


def test_a_score_is_interpolated_between_points_and_not_beyond_them(jobs: Any) -> None:
    _, weak, _, strong, _ = settings(jobs)
    low, three, far = jobs.grid.settings.score_at_kl([strong, weak], (1.0, 3.0, 8.0), resamples=200)
    assert three.mean == pytest.approx(0.7)
    assert three.ci95[0] < 0.7 < three.ci95[1]
    assert (low, far) == (None, None)


def test_tables_name_the_frontier_and_the_losers(jobs: Any) -> None:
    found = settings(jobs)
    met = jobs.grid.settings.meetings(found, resamples=500)
    lines = {line.split(" | ")[0]: line for line in jobs.tables.who_dominates(found, met)}
    assert "| **strong a**" in lines
    assert "| **far a**" in lines
    assert "| **pi_ref**" in lines
    assert "weak a; near a" in lines["| **strong a**"]
    assert "within chance" not in lines["| **strong a**"]
    assert lines["| near a"] == "| near a | 1 within chance | strong a |"
    assert lines["| weak a"].endswith("| strong a; 1 within chance |")


def test_only_the_last_round_meets_others_and_all_are_listed(jobs: Any) -> None:
    rows = [row(jobs, "pi_ref", "", 0, 0.5, 0.0)]
    rows += [
        row(jobs, "online_dpo", "beta 0.1", 0, 0.5 + n / 10, float(n), rounds=n, last=n == 2)
        for n in (1, 2)
    ]
    found = jobs.grid.settings.settings_of(rows)
    assert [s.label for s in jobs.grid.settings.last_policies(found)] == [
        "pi_ref",
        "online_dpo beta 0.1, round 2",
    ]
    assert sum("online_dpo" in line for line in jobs.tables.policies(found)) == 2


def test_the_small_tables_show_the_slides_numbers_and_the_papers_order(jobs: Any) -> None:
    on_data = {"chosen": -2.0, "rejected": -8.0, "all": -5.25, "accuracy": 0.9}
    rows = [row(jobs, "pi_ref", "", 0, 0.5, 0.0)]
    rows += [row(jobs, "dpo", "beta 0.1", 0, 0.75, 5.0, data=on_data)]
    rows += [row(jobs, "dpo", "beta 1", 0, 0.6, 1.0, data=on_data)]
    rows += [row(jobs, "policy_gradient", "beta 0.3", 0, 0.7, 4.0, rounds=6)]
    rows += [row(jobs, "binary_cringe", "lr 1e-4", 0, 0.55, 3.0)]
    found = jobs.grid.settings.settings_of(rows)
    dpo = next(line for line in jobs.tables.slides(found) if line.startswith("| pi_dpo"))
    assert "0.750" in dpo
    assert "| -5.25 | 0.99, -26.6 |" in dpo
    order = jobs.tables.paper_order(found, jobs.grid.settings.meetings(found, resamples=200))[2:]
    assert [line.split("`")[1] for line in order] == ["binary_cringe", "policy_gradient", "dpo"]
    assert "beta 0.1" in order[2]
    assert "+0.050 [" in order[2]


def test_the_way_of_chosen_log_probs_is_a_mean_over_seeds(jobs: Any) -> None:
    curves = [{"step": [0.0, 4.0], "logps/chosen": [-100.0, -100.0 + c]} for c in (1.0, 3.0)]
    rows = [row(jobs, "dpo", "b", seed, 0.6, 2.0, curve=c) for seed, c in enumerate(curves)]
    (line,) = jobs.displacement.table(jobs.grid.settings.settings_of(rows))[2:]
    assert "| +0.0 → +2.0 |" in line


def test_figures_are_drawn_from_planted_rows(jobs: Any, tmp_path: Path) -> None:
    jobs.plot.draw_frontier(settings(jobs), tmp_path / "a.png")
    jobs.plot.draw_rewards(settings(jobs), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size < 150_000


def test_a_finished_study_prints_its_tables_and_runs_nothing(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = jobs.grid.points.Settings(tmp_path)
    for point in jobs.study._chosen(["dpo"], ["dpo-beta-0.1"]):
        planted = row(jobs, point.method, point.strength, 0, 0.5, 1.0)
        done = replace(planted, overrides=list(study.of(point, 0)))
        jobs.grid.results.append(tmp_path / "results.jsonl", [done])
        # A row with other settings, such as an earlier `--set`, counts for nothing.
        jobs.grid.results.append(tmp_path / "results.jsonl", [replace(planted, overrides=[])])
    arguments = ["--output", str(tmp_path), "--seeds", "0", "--points", "dpo-beta-0.1"]
    monkeypatch.setattr(sys, "argv", ["frontier_study.py", *arguments])
    jobs.study.main()
    printed = capsys.readouterr().out
    # With `--tables`, points that have no result are left out.
    more = ["--output", str(tmp_path), "--level", "1", "--tables"]
    monkeypatch.setattr(sys, "argv", ["frontier_study.py", *more])
    jobs.study.main()
    assert capsys.readouterr().out == printed
    assert "### Who dominates whom" in printed
    assert (tmp_path / "tables.md").read_text().strip() in printed
    assert "`dpo` | beta 0.1 | 1 |" in printed
    assert not (tmp_path / "seed-0").exists()
    assert (
        json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["method"] == "pi_ref"
    )
