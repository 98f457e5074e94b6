"""The benchmark of sampling keeps each measurement, and goes on where it was stopped."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.jobs.job_modules import modules_of


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    with modules_of("benchmark", ("kept", "machine")) as found:
        found.command = importlib.import_module("bench_sampling")
        yield found


def result(jobs: Any, seconds: float, **found: Any) -> dict[str, Any]:
    noise = jobs.machine.Noise(
        seconds, 2, load=seconds, load_before=1.0, others_share=0.1, steal_share=0.0
    )
    return {"found": found, "noise": noise.as_json()}


def test_measurements_that_are_kept_are_not_made_again(
    jobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = jobs.command._parser().parse_args(["--quick"])
    kept = jobs.kept.Kept(tmp_path / "unfinished.jsonl", jobs.command._made_with(options))
    kept.add("rates", result(jobs, 3.0, stage_tokens_per_second=6000.0))
    kept.add("speeds", result(jobs, 4.0, push_seconds=0.04))
    kept.add("transformers", result(jobs, 2.0, stage_vs_transformers=5.0))
    kept.add("flat memory", result(jobs, 1.0, flat_prompts=10))
    jobs.command._measure(None, options, kept)  # there is no work, so nothing can be measured
    printed = capsys.readouterr().out
    assert "[1/3] speeds: 4 s, load 4.0, other processes 10%" in printed
    assert "[3/3] flat memory: 1 s" in printed
    found = jobs.command._joined(kept)
    assert found["stage_tokens_per_second"] == 6000.0
    assert found["flat_prompts"] == 10
    assert found["seconds"] == 7.0  # the speeds contain the rates
    assert "load 1.0 to 4.0" in found["machine"]


def test_a_measurement_is_on_disk_before_the_next_begins(jobs: Any, tmp_path: Path) -> None:
    kept = jobs.kept.Kept(tmp_path / "unfinished.jsonl", {})
    jobs.command._keep(kept, "rates", lambda: {"stage_tokens_per_second": 1.0})

    def next_one() -> dict[str, Any]:
        assert "rates" in jobs.kept.Kept(tmp_path / "unfinished.jsonl", {}).results
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.command._keep(kept, "speeds", next_one)
    (name,) = jobs.kept.Kept(tmp_path / "unfinished.jsonl", {}).results
    assert name == "rates"


def test_other_options_do_not_share_measurements(jobs: Any, tmp_path: Path) -> None:
    def kept(*arguments: str) -> Any:
        options = jobs.command._parser().parse_args(arguments)
        return jobs.kept.Kept(tmp_path / "unfinished.jsonl", jobs.command._made_with(options))

    kept("--prompts", "64").add("transformers", result(jobs, 1.0))
    assert list(kept("--prompts", "64").results) == ["transformers"]
    assert kept("--prompts", "128").results == {}
    assert kept("--prompts", "64", "--candidates", "2").results == {}
