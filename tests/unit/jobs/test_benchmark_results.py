"""Results of benchmarks are on disk at once, and the watch tells other work from the measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.jobs.job_modules import modules_of

#: A process that starts another; the other uses the processor and memory, and ends first.
PARENT = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", sys.argv[1]])
time.sleep(0.4)
"""
CHILD = """
import time
held = bytearray(b"x") * (100 << 20)
until = time.process_time() + 0.6
while time.process_time() < until:
    pass
time.sleep(0.3)
"""


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    with modules_of("benchmark", ("kept", "machine")) as found:
        yield found


def test_a_result_is_on_disk_before_the_next_is_measured(jobs: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.jsonl"
    kept = jobs.kept.Kept(path, {"threads": 2})
    assert kept.found() is None
    kept.add("K = 2", {"seconds": 1.5})
    assert json.loads(path.read_text())["result"] == {"seconds": 1.5}
    again = jobs.kept.Kept(path, {"threads": 2})
    assert again.results == {"K = 2": {"seconds": 1.5}}
    assert "1 results of an earlier run" in again.found()
    again.finish()
    assert jobs.kept.Kept(path, {"threads": 2}).results == {}


def test_results_of_other_settings_are_not_mixed_in(jobs: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    jobs.kept.Kept(path, {"threads": 2, "shape": (1, 2)}).add("a", {"seconds": 1.0})
    assert jobs.kept.Kept(path, {"threads": 1, "shape": (1, 2)}).results == {}
    # A tuple comes back from JSON as a list, and is the same setting.
    assert list(jobs.kept.Kept(path, {"threads": 2, "shape": (1, 2)}).results) == ["a"]


def test_a_line_that_a_kill_has_cut_loses_no_other(jobs: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    jobs.kept.Kept(path, {}).add("a", {"seconds": 1.0})
    with open(path, "a", encoding="utf-8") as lines:
        lines.write('{"name": "b", "made')
    kept = jobs.kept.Kept(path, {})
    assert list(kept.results) == ["a"]
    kept.add("c", {"seconds": 3.0})
    assert list(jobs.kept.Kept(path, {}).results) == ["a", "c"]


def test_a_hash_of_sources_changes_with_any_of_them(jobs: Any) -> None:
    both = jobs.kept.source_hash(("jobs/benchmark", "jobs/bench_rounds.py"))
    assert both == jobs.kept.source_hash(("jobs/benchmark", "jobs/bench_rounds.py"))
    assert both != jobs.kept.source_hash(("jobs/benchmark",))
    assert both != jobs.kept.source_hash(("jobs/bench_rounds.py",))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the watch reads /proc")
def test_the_watch_sees_time_and_memory_of_a_whole_tree(jobs: Any) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD])
    with jobs.machine.Watch(process.pid, memory=True, every_seconds=0.05) as watch:
        assert process.wait() == 0
    noise = watch.noise()
    # What is spent after the last look at a process is lost: up to 0.05 s here.
    assert 0.5 < noise.own_cpu_seconds < 1.5
    assert sum(noise.cpu_seconds.values()) == pytest.approx(noise.own_cpu_seconds)
    assert 100 << 20 < noise.peak_bytes < 200 << 20
    assert noise.seconds > 1.2
    shares = noise.own_share, noise.others_share, noise.steal_share
    assert all(0 <= share <= 1 for share in shares)
    assert jobs.machine.Noise(**json.loads(json.dumps(noise.as_json()))) == noise


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the watch reads /proc")
def test_work_of_others_is_not_taken_for_the_measured(jobs: Any) -> None:
    measured = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    other = subprocess.Popen([sys.executable, "-c", CHILD])
    with jobs.machine.Watch(measured.pid, every_seconds=0.05) as watch:
        measured.wait()
    other.wait()
    noise = watch.noise()
    assert noise.own_cpu_seconds < 0.3
    assert noise.others_share * noise.seconds * (os.cpu_count() or 1) > 0.3
    assert noise.peak_bytes is None


def test_several_measurements_are_said_in_one_line(jobs: Any) -> None:
    def noise(load: float, others: float, steal: float) -> Any:
        shares = {"own_share": 0.5, "others_share": others, "steal_share": steal}
        return jobs.machine.Noise(1.0, 2, load=load, load_before=load, **shares)

    line = jobs.machine.said_of([noise(1.0, 0.02, 0.0), noise(3.0, 0.25, 0.01)])
    assert line == (
        "the machine meanwhile (2 CPUs): load 1.0 to 3.0, other processes took 2% to 25% of the "
        "CPU time, steal 0% to 1%"
    )
    assert jobs.machine.said_of([jobs.machine.Noise(1.0, 2)]) == "the machine's load is unknown"
