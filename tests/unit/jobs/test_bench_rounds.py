"""The benchmark of rounds asks the same of both sides, keeps what it measures, and compares it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.file import config_from_values, load_config
from raydpo.config.labeling import PairsConfig
from raydpo.labeling.pairs import Draws, Scored, build_pairs
from tests.unit.jobs.job_modules import JOBS, modules_of

MODULES = (
    "loop",
    "loop_reward",
    "measuring",
    "ours",
    "page",
    "search",
    "setting",
    "summary",
    "theirs",
)
#: A run of both sides that takes a minute: few short completions, one round.
TINY = (
    "rounds=1",
    "prompts_per_round=8",
    "max_completion_tokens=8",
    "epochs=1",
    "heldout_samples=1",
)


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    with modules_of("rounds", MODULES) as found:
        found.kept = importlib.import_module("benchmark.kept")
        found.machine = importlib.import_module("benchmark.machine")
        found.command = importlib.import_module("bench_rounds")
        yield found


def noise(jobs: Any, load: float = 1.0) -> dict[str, Any]:
    shares = {"own_share": 0.8, "others_share": 0.1, "steal_share": 0.0}
    spent = {"ray::Engine": 36.0, "python": 3.6, "a": 0.2, "b": 0.2}
    return jobs.machine.Noise(
        *(9.0, 2),
        **shares,
        load=load,
        load_before=load,
        peak_bytes=2_000_000_000,
        own_cpu_seconds=40.0,
        cpu_seconds=spent,
    ).as_json()


def run(jobs: Any, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "ends": [0.4 * seconds, 0.6 * seconds, 0.9 * seconds],
        "noise": noise(jobs),
        "phases": {"sampling": seconds / 2, "training": seconds / 2},
        "counts": {"completions": [556], "pairs": [680], "steps": [18]},
        "policies": ["/somewhere"] * 3,
    }


def results(jobs: Any, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    sides = {"ours": ours, "theirs": theirs}
    return {
        jobs.summary.run_name(repeat, side): run(jobs, seconds)
        for side, each in sides.items()
        for repeat, seconds in enumerate(each)
    }


def test_our_side_is_the_shipped_online_job_without_its_evaluation(jobs: Any) -> None:
    root = JOBS.parent
    setting = jobs.setting.Setting()
    ours = config_from_values(jobs.ours.job(setting, Path("/folder"), root, 2), "job")
    shipped = load_config(JOBS / "online_dpo.yaml")
    assert ours.training is not None
    assert ours.online is not None
    assert shipped.training is not None
    assert shipped.online is not None
    changes = {"warmup_fraction": 0.0, "heldout_fraction": 0.0, "checkpoint_every_steps": 100}
    assert ours.training == shipped.training.model_copy(update=changes)
    assert ours.online == shipped.online.model_copy(update={"stopping": ours.online.stopping})
    assert ours.sampling == shipped.sampling
    assert ours.evaluation is None
    assert (root / setting.heldout).is_file()


def test_both_sides_get_the_prompts_of_each_round(jobs: Any, tmp_path: Path) -> None:
    setting = jobs.setting.Setting()
    jobs.theirs.write_prompts(setting, tmp_path, JOBS.parent)
    files = [jobs.setting.prompts_file(tmp_path, index) for index in range(3)]
    rounds = [file.read_text(encoding="utf-8").splitlines() for file in files]
    assert [len(one) for one in rounds] == [139, 139, 139]
    assert len({line for one in rounds for line in one}) == 417  # one circle of all 418


def test_the_loop_is_asked_for_what_the_setting_says(jobs: Any) -> None:
    setting = jobs.setting.Setting(beta=0.3, epochs=3, candidates=5)
    folder, model = Path("/folder"), Path("/model")

    def step(name: str, tuning: Any) -> tuple[dict[str, str], dict[str, str]]:
        words, variables = jobs.loop.step_command(
            name, setting, tuning, Path("/root"), folder, 1, model
        )
        flags = {f: v for f, v in zip(words, [*words[1:], ""], strict=True) if f.startswith("--")}
        return flags, variables

    tuned = jobs.setting.Tuning(training_threads=1, batch_pairs=24)
    sampling, variables = step("sampling", tuned)
    assert sampling["--candidates"] == "5"
    assert sampling["--model"] == "/model"
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in step("sampling", replace(tuned, eager=False))[1]
    assert step("rewards and pairs", tuned)[0]["--min-margin"] == "0.5"
    training, variables = step("training", tuned)
    assert (training["--beta"], training["--epochs"]) == ("0.3", "3")
    assert training["--reference"] == "/root/assets/review-lm"  # the original, in every round
    assert variables["OMP_NUM_THREADS"] == "1"
    assert "MALLOC_TOP_PAD_" in variables
    assert "MALLOC_TOP_PAD_" not in step("training", replace(tuned, malloc=False))[1]


def test_malloc_of_the_loop_is_tuned_as_our_workers(jobs: Any) -> None:
    from raydpo.core.environment import CPU_ENVIRONMENT

    assert dict(CPU_ENVIRONMENT) == jobs.loop.MALLOC


@pytest.mark.parametrize("rewards", [(0.0, 2.0, -1.0, 0.5), (1.0, 1.0, 1.25, -3.0)])
def test_the_loop_pairs_as_our_builder_does(jobs: Any, rewards: tuple[float, ...]) -> None:
    row = {"prompt": "p", "prompt_ids": [1], "completion_ids": [[0], [1], [2], [3]]}
    theirs = {
        (pair["chosen_ids"][0], pair["rejected_ids"][0])
        for pair in jobs.loop_reward.pairs(row, rewards, 0.5)
    }
    scored = [Scored(i, (i,), reward) for i, reward in enumerate(rewards)]
    config = PairsConfig(builder="all_pairs", min_margin=0.5)
    assert theirs == set(build_pairs(scored, config, Draws(0, 0, "p")).pairs)
    assert 0 < len(theirs) < 6


def test_the_loop_scores_by_log_odds(jobs: Any) -> None:
    labels = [{"label": "negative", "score": -1.0}, {"label": "positive", "score": 2.0}]
    assert jobs.loop_reward.log_odds(labels, "positive") == 3.0
    assert jobs.loop_reward.log_odds(labels, "negative") == -3.0


def test_a_ratio_is_of_the_two_runs_of_one_repeat(jobs: Any) -> None:
    found = results(jobs, [10.0, 40.0, 10.0], [30.0, 80.0, 50.0])
    ratio = jobs.summary.ratio(found, 3)
    assert ratio.each == [3.0, 2.0, 5.0]
    assert ratio.median == 3.0  # that of the medians would be 5
    del found[jobs.summary.run_name(1, "ours")]
    assert jobs.summary.ratio(found, 3).each == [3.0]  # a repeat without its other side is left out
    assert jobs.summary.ratio({}, 3) is None


def test_fewer_rounds_are_the_first_ones_and_the_end_of_the_command(jobs: Any) -> None:
    one = {"seconds": 70.0, "ends": [30.0, 50.0, 68.0]}
    assert jobs.summary.seconds_after(one, 1) == 32.0
    assert jobs.summary.seconds_after(one, 3) == 70.0


def test_policies_that_the_judge_tells_apart_are_not_the_same_work(jobs: Any) -> None:
    found = results(jobs, [1.0] * 3, [2.0] * 3)
    prompts = [0.7, 0.8, 0.6, 0.9]

    def judge(shift: float) -> Any:
        for repeat, jitter in enumerate((0.0, 0.02, -0.02)):
            scores = {
                "original": [0.5] * 4,
                "ours": [p + shift + jitter for p in prompts],
                "theirs": prompts,
            }
            found[jobs.summary.judge_name(repeat)] = {"3": scores}
        return jobs.summary.judged(found, 3)

    same, other = judge(0.01), judge(0.1)
    assert same.same
    assert same.difference == pytest.approx(0.01)
    assert same.standard_error == pytest.approx(0.02 / 3**0.5)  # over repeats: that is the larger
    assert not other.same
    assert "NOT the same" in jobs.page.judged_line(other)


def test_the_search_keeps_a_change_only_where_it_is_faster(jobs: Any, tmp_path: Path) -> None:
    kept = jobs.kept.Kept(tmp_path / "results.jsonl", {})
    assert jobs.search.best(kept) == (jobs.setting.Tuning(), [], False)
    faster = {"batch_pairs": 16}
    for process, changes in jobs.search.CHANGES.items():
        for change in changes:
            assert not jobs.search.best(kept)[2]
            assert jobs.search.missing(len(kept.results)) == (process, change)
            seconds = 5.0 if change == faster else 10.0
            kept.add(jobs.search.trial_name(process, change), {"seconds": seconds})
    tuning, trials, whole = jobs.search.best(kept)
    assert whole
    assert tuning == replace(jobs.setting.Tuning(), batch_pairs=16)
    assert [trial.change for trial in trials if trial.kept] == [{}, {}, {}, faster]


def test_an_interrupted_run_is_measured_anew_and_its_folder_stays(
    jobs: Any, tmp_path: Path
) -> None:
    path = tmp_path / "ours-0"
    (jobs.command.fresh_folder(path) / "half").touch()
    assert list(jobs.command.fresh_folder(path).iterdir()) == []
    assert (tmp_path / "ours-0.unfinished-1" / "half").exists()


def test_nothing_begins_that_would_end_too_late(jobs: Any) -> None:
    expected = jobs.command.expected_seconds
    found = results(jobs, [50.0, 60.0], [200.0])
    assert expected(found, 3, "ours") == pytest.approx(72.0)
    assert expected(found, 3, "theirs") == pytest.approx(240.0)
    assert expected({}, 1, "theirs") < expected({}, 3, "theirs")


def test_the_page_has_ratios_phases_memory_and_the_machine(jobs: Any) -> None:
    found = results(jobs, [10.0, 20.0], [30.0, 80.0])
    where = {"command": "c", "date": "d", "processor": "p", "cpus": 2, "python": "3", "workers": 1}
    tuning = jobs.setting.Tuning()
    trials = [jobs.search.Trial("training", {"batch_pairs": 16}, 9.0, True)]
    text = jobs.page.page(found, jobs.setting.Setting(), tuning, trials, {**where, "versions": {}})
    assert "| 3 | 2 | 15 (10 to 20) | 55 (30 to 80) | 3.50 (3.00 to 4.00) | 3.0 |" in text
    assert "| 1 | 2 | 8 (5 to 10) | 28 (15 to 40) | 3.50 (3.00 to 4.00) | 1.5 |" in text
    assert "| theirs | 556 | 680 | 18 | 2000 | 40 |" in text
    assert "| ray::Engine | 36.0 | 90% |" in text
    assert "| 2 others | 0.4 | 1% |" in text
    assert "| training | 7.5 | 50% |" in text
    assert "- the machine meanwhile (2 CPUs): load 1.0 to 1.0" in text
    assert "| training | batch_pairs 16 | 9.0 | yes |" in text


def test_without_trl_the_command_says_how_to_install_it(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trl" else find(name)
    )
    with pytest.raises(SystemExit, match=r"pip install 'raydpo\[peers\]'"):
        jobs.command.main(["--results", str(tmp_path / "results.jsonl")])
    assert list(tmp_path.iterdir()) == []  # nothing was measured


def test_a_command_that_fails_shows_the_end_of_its_log(jobs: Any, tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "print('first'); raise SystemExit('no such model')"]
    with pytest.raises(jobs.measuring.SideError, match=r"ended with 1:\n(.*\n)?no such model"):
        jobs.measuring.run(failing, tmp_path / "log.txt", tmp_path)
    assert "first" in (tmp_path / "log.txt").read_text()


def test_a_stopped_benchmark_leaves_no_process_behind(jobs: Any, tmp_path: Path) -> None:
    """As a time limit does it: the script that a command runs ends with the command."""
    child = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, 'pid'])"
    parent = (
        "import signal, sys; from pathlib import Path; import bench_rounds as b; "
        "signal.signal(signal.SIGTERM, b._stop); from rounds.measuring import run; "
        f"run([sys.executable, '-c', {script!r}], Path('log.txt'), Path('.'))"
    )
    environment = {**os.environ, **jobs.measuring.environment()}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=environment)
    until = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    child_id = int((tmp_path / "pid").read_text())
    while _alive(child_id):
        assert time.monotonic() < until
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.thorough
def test_the_loops_training_takes_the_steps_of_ours_and_its_tokens(
    jobs: Any, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    setting = jobs.setting.Setting(groups_per_step=2, epochs=2)
    tuning = jobs.setting.Tuning(batch_pairs=2)
    rows = [
        {
            "prompt": f"prompt {number}",
            "prompt_ids": [1, 43, 935],
            "chosen_ids": [264 + number, 715, 337],  # cut: no end token may be appended
            "rejected_ids": [511, 497 + number],
        }
        for number in (0, 0, 1, 2, 3, 4)
    ]
    pairs = jobs.loop.output("rewards and pairs", tmp_path, 0)
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    root = JOBS.parent
    command, variables = jobs.loop.step_command(
        "training", setting, tuning, root, tmp_path, 0, root / setting.model
    )
    jobs.measuring.run(command, tmp_path / "log.txt", root, variables)
    done = json.loads((jobs.loop.policy(tmp_path, 0) / "training.json").read_text())
    # Five prompts, two a step: three steps an epoch, of 6 / 3 pairs, so of one batch of two.
    assert done == {"pairs": 6, "steps": 6, "batches": 1}
    work = jobs.loop.work("training", tmp_path, 0)["work"]
    assert work.keys() == {"reference", "training"}
    assert min(work.values()) > 0
    assert (jobs.loop.policy(tmp_path, 0) / "model.safetensors").exists()
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "'epoch': '2'" in log
    assert f"'num_tokens': '{2 * 6 * (2 * 3 + 3 + 2)}'" in log


def bench(jobs: Any, tmp_path: Path, *more: str) -> dict[str, Any]:
    path = tmp_path / "results.jsonl"
    arguments = ["--results", str(path), "--repeats", "1", "--no-search"]
    jobs.command.main([*arguments, *more, "--set", *TINY])
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry["result"] for entry in map(json.loads, lines)}


@pytest.mark.slow
def test_our_side_runs_and_says_where_its_time_went(jobs: Any, tmp_path: Path) -> None:
    found = bench(jobs, tmp_path, "--sides", "ours")
    (result,) = found.values()
    assert result["counts"]["completions"] == [32]
    assert result["counts"]["steps"] == [1]
    assert sum(result["phases"].values()) == pytest.approx(result["seconds"])
    assert min(result["phases"].values()) >= 0  # nothing is counted twice
    assert {"training", "engine start", "outside rounds"} <= result["phases"].keys()
    assert result["noise"]["peak_bytes"] > 500e6
    assert (Path(result["policies"][-1]) / "model.safetensors").exists()
    assert 0 < result["ends"][0] <= result["seconds"]


@pytest.mark.slow
def test_the_usual_loop_does_the_same_number_of_steps(jobs: Any, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    found = bench(jobs, tmp_path, "--sides", "theirs")
    (result,) = found.values()
    assert result["counts"]["completions"] == [32]
    assert result["counts"]["steps"] == [1]
    assert sum(result["phases"].values()) == pytest.approx(result["seconds"])
    assert {"training", "reference", "start of training"} <= result["phases"].keys()
    assert (Path(result["policies"][-1]) / "model.safetensors").exists()
    assert 0 < result["ends"][0] <= result["seconds"]
