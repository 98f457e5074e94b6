"""The benchmark counts, draws and writes correctly, and its contenders compute the same."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.jobs.job_modules import modules_of, tiny_scenario

MODULES = (
    *("spec", "data", "flops", "memory", "processes", "scenarios", "results", "report"),
    *("kept", "machine"),
)


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    with modules_of("benchmark", MODULES) as found:
        found.command = importlib.import_module("bench_training")
        yield found


@pytest.fixture(scope="module")
def tiny(jobs: Any) -> Any:
    return tiny_scenario(jobs.spec, steps=8)


def test_useful_operations_are_those_that_torch_counts_when_nothing_is_shared(jobs: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = jobs.spec.ModelShape("s", 2, 64, 2, 1, 96, 128)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation("eager")  # its matrix products are counted on every device
    prompt, completion = 1, 9
    ids = torch.arange(prompt + completion - 1)[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    row = {"prompt_ids": [0], "completions": [[0] * completion]}
    counted = jobs.flops.forward_flops(shape, [row])
    # Torch counts the whole square of attention scores, and not only what is causal, and the
    # tables of rotary positions; all that multiplies parameters is counted alike.
    masked = 4 * 2 * 64 * (9 * 9 - 9 * 10 // 2)
    assert counted + masked == pytest.approx(counter.get_total_flops(), rel=5e-3)


def test_a_shared_prompt_is_counted_once(jobs: Any, tiny: Any) -> None:
    def forward(completions: int) -> int:
        row = {"prompt_ids": [0] * 20, "completions": [[0] * 5] * completions}
        return jobs.flops.forward_flops(tiny.model, [row])

    assert forward(3) - forward(2) == forward(2) - forward(1)
    assert forward(1) > 2 * (forward(2) - forward(1))


def test_data_are_the_same_each_time_and_for_everyone(jobs: Any, tiny: Any) -> None:
    rows = jobs.data.group_rows(tiny)
    assert rows == jobs.data.group_rows(tiny)
    pairs = jobs.data.pair_rows(tiny, rows)
    assert len(pairs) == tiny.data.pairs_per_step * tiny.data.steps == 2 * 3 * 8
    first = jobs.data.step_rows(tiny, rows, 0)[0]
    assert [pair["prompt_ids"] for pair in pairs[:3]] == [first["prompt_ids"]] * 3
    assert [pair["chosen_ids"] for pair in pairs[:3]] == [
        first["completions"][i] for i in (0, 0, 1)
    ]
    assert pairs[0]["ref_rejected_logps"] == pytest.approx(sum(first["reference_token_logps"][1]))


def test_lengths_vary_around_their_median_as_asked(jobs: Any, tiny: Any) -> None:
    def lengths(sigma: float) -> list[int]:
        data = replace(tiny.data, sigma=sigma, prompt_tokens=100, steps=200)
        return sorted(len(r["prompt_ids"]) for r in jobs.data.group_rows(replace(tiny, data=data)))

    assert set(lengths(0.0)) == {100}
    spread = lengths(0.5)
    assert 90 < spread[200] < 110
    assert spread[-1] <= 300


def test_a_scenario_survives_its_way_to_a_worker(jobs: Any, tiny: Any) -> None:
    assert jobs.spec.Scenario.from_json(json.loads(json.dumps(tiny.as_json()))) == tiny


def test_memory_growth_sees_what_was_held_and_given_back(jobs: Any) -> None:
    growth = jobs.memory.reset("cpu")
    held = torch.ones(64 << 20, dtype=torch.uint8)
    del held
    assert growth.bytes() >= 60 << 20


def test_what_is_not_installed_is_left_out_with_a_line(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trl" else find(name)
    )
    choices = jobs.scenarios.Choices("cpu", "float32", "small", quick=True, vllm=False)
    lines = jobs.scenarios.left_out(choices)
    assert len([line for line in lines if "trl not installed" in line]) == 3
    names = {c.name for e in jobs.scenarios.experiments(choices) for c in e.contenders}
    assert "raydpo" in names
    assert not any(name.startswith("trl") for name in names)


@pytest.mark.parametrize("quick", [True, False])
def test_every_experiment_has_data_for_all_its_turns(jobs: Any, quick: bool) -> None:
    choices = jobs.scenarios.Choices("cpu", "float32", "small", quick, vllm=True, repeats=12)
    for experiment in jobs.scenarios.experiments(choices):
        turns, steps = experiment.turns, experiment.scenario.data.steps
        units = steps // jobs.data.STEPS_A_PART if experiment.scores else steps
        assert turns.warm_up + turns.repeats * turns.count <= units, experiment.scenario.name


def test_a_name_that_no_scenario_has_is_refused_with_those_there_are(jobs: Any) -> None:
    choices = jobs.scenarios.Choices("cpu", "float32", "small", quick=True, vllm=False)
    chosen = jobs.command.choose_experiments(choices, "vocabulary")
    assert [experiment.scenario.name for experiment in chosen] == ["vocabulary 32k"]
    with pytest.raises(jobs.processes.BenchmarkError, match="`K = 2`, `K = 4, six pairs`"):
        jobs.command.choose_experiments(choices, "vocabluary")


def runs(jobs: Any, name: str, seconds: list[float], losses: list[float]) -> Any:
    contender = {c.name: c for c in jobs.spec.TRAINERS}[name]
    peak = [1e9] * len(seconds) if name == "raydpo" else []
    growth = 300_000_000 if name == "raydpo" else 500_000_000
    return jobs.processes.Runs(contender, 1000, seconds, losses, growth, peak)


def experiment(jobs: Any, scenario: Any, fresh: bool = True) -> Any:
    turns = jobs.processes.Turns(warm_up=1, repeats=3, count=2)
    contenders = (jobs.spec.OURS, jobs.spec.TRL_COMPACT)
    return jobs.scenarios.Experiment(scenario, contenders, turns, fresh)


def test_ratios_are_medians_of_turns_and_not_of_contenders(jobs: Any, tiny: Any) -> None:
    ours = runs(jobs, "raydpo", [1.0, 2.0, 1.0], [0.7] * 7)
    theirs = runs(jobs, "trl_compact", [3.0, 4.0, 5.0], [0.7] * 7)
    first, second = jobs.results.measured(experiment(jobs, tiny), [ours, theirs])
    assert second.times_ours == 3.0  # of 3, 2 and 5; the medians' ratio would be 4
    assert first.times_ours == 1.0
    assert first.step_seconds == 0.5
    assert first.pairs_per_second == 12.0
    assert first.step_megabytes == pytest.approx(300 - 0.008)
    assert first.losses == [0.7]


def test_contenders_that_compute_different_losses_are_not_compared(jobs: Any, tiny: Any) -> None:
    ours = runs(jobs, "raydpo", [1.0] * 3, [0.7, 0.6])
    theirs = runs(jobs, "trl_compact", [3.0] * 3, [0.7, 0.61])
    with pytest.raises(jobs.processes.BenchmarkError, match="step 2: raydpo has"):
        jobs.results.measured(experiment(jobs, tiny), [ours, theirs])


def test_table_json_and_plot_are_written(jobs: Any, tiny: Any, tmp_path: Path) -> None:
    done = [
        experiment(jobs, replace(tiny, name="K = 2")),
        experiment(jobs, replace(tiny, name="vocabulary 32k")),
    ]
    rows = []
    for one in done:
        ours = runs(jobs, "raydpo", [1.0, 2.0, 1.0], [0.7] * 7)
        theirs = runs(jobs, "trl_compact", [3.0, 4.0, 5.0], [0.7] * 7)
        rows += jobs.results.measured(one, [ours, theirs])
    where = jobs.report.environment(2, "cpu")
    jobs.report.write(tmp_path, rows, done, where, ["trl_stock is left out"])
    page = (tmp_path / "training-cpu.md").read_text()
    assert "| K = 2 | `raydpo` | 0.500 | 12.00 | 1.00 | 300 |" in page
    assert "|  | `trl_compact` | 2.000 | 3.00 | 3.00 | 500 |" in page
    assert importlib.metadata.version("torch") in page
    stored = json.loads((tmp_path / "training-cpu.json").read_text())
    assert stored["summary"]["k2_vs_trl_compact"] == 3.0
    assert stored["summary"]["memory_vs_trl_compact"] == 0.6
    assert stored["summary"]["k2_vs_trl_stock"] is None  # it was not measured
    assert len(stored["rows"]) == 4
    assert (tmp_path / "training-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_what_an_interrupted_run_has_measured_is_printed_and_not_measured_again(
    jobs: Any, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = experiment(jobs, tiny)
    ours = runs(jobs, "raydpo", [1.0, 2.0, 1.0], [0.7] * 7)
    theirs = runs(jobs, "trl_compact", [3.0, 4.0, 5.0], [0.7] * 7)
    rows = jobs.results.measured(one, [ours, theirs])
    noise = jobs.machine.Noise(7.0, 2, load=3.5, load_before=3.0, others_share=0.25)
    result = {"rows": [asdict(row) for row in rows], "noise": noise.as_json()}
    jobs.kept.Kept(tmp_path / "results.jsonl", {}).add("tiny", result)
    kept = jobs.kept.Kept(tmp_path / "results.jsonl", {})
    # A contender that no process could run: to measure it again would fail.
    broken = replace(one, contenders=(replace(jobs.spec.OURS, kind="nobody"),))
    again, failures = jobs.command.measure([broken], 1, tmp_path, kept)
    assert again == rows
    assert failures == []
    printed = capsys.readouterr().out
    assert "[1/1] tiny: 7 s, load 3.5, other processes 25%" in printed
    assert "|  | `trl_compact` | 2.000 | 3.00 | 3.00 | 500 |" in printed


@pytest.mark.slow
def test_real_contenders_take_turns_and_agree_on_every_loss(
    jobs: Any, tiny: Any, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    stock = replace(jobs.spec.TRL_STOCK, batch_pairs=3)
    contenders = (jobs.spec.OURS, stock, jobs.spec.TRL_COMPACT)
    turns = jobs.processes.Turns(warm_up=3, repeats=2, count=1, peak_size=64)
    one = jobs.scenarios.Experiment(tiny, contenders, turns, fresh=True)
    with jobs.processes.workers(list(contenders), 1, tmp_path, "cpu") as started:
        first = jobs.processes.take_turns(tiny, started, turns)
        again = jobs.processes.take_turns(tiny, started, turns)  # the same processes
    for found in (first, again):
        losses = [r.losses for r in found]
        assert len(losses[0]) == 5
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert losses[2] == pytest.approx(losses[0], rel=1e-5)
        assert losses[0][0] != pytest.approx(0.693147, abs=1e-3)  # the check is not empty
    assert [row.contender for row in jobs.results.measured(one, first)] == [
        "raydpo",
        "trl_stock",
        "trl_compact",
    ]


@pytest.mark.slow
def test_an_experiment_that_fails_is_named_and_the_others_are_kept(
    jobs: Any, tiny: Any, tmp_path: Path
) -> None:
    turns = jobs.processes.Turns(warm_up=1, repeats=1, count=1, peak_size=64)
    cuda_only = replace(jobs.spec.OURS, attention="flex")
    broken = jobs.scenarios.Experiment(replace(tiny, name="broken"), (cuda_only,), turns)
    whole = jobs.scenarios.Experiment(tiny, (jobs.spec.OURS,), turns)
    kept = jobs.kept.Kept(tmp_path / "results.jsonl", {})
    rows, failures = jobs.command.measure([broken, whole], 1, tmp_path, kept)
    assert [row.scenario for row in rows] == ["tiny"]
    assert failures == ["broken was not measured: the process of raydpo ended with 1:"]
    # Only what was measured is on disk, with how busy the machine was: `broken` is tried again.
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    result = json.loads(line)["result"]
    assert [row["scenario"] for row in result["rows"]] == ["tiny"]
    assert result["noise"]["own_cpu_seconds"] > 0
