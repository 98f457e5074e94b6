"""The soak draws its faults by a seed, applies them to real processes, and finds lost rows."""

from __future__ import annotations

import importlib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.file import load_config
from raydpo.core.storage import folder_of
from tests.unit.jobs.job_modules import JOBS, modules_of

#: A driver with one process below it, which it waits for.
DRIVER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", "RayTrainWorker"])
sys.exit(child.wait() != 0)
"""


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    names = ("attempt", "faults", "jobs", "outcome", "page", "results", "stores")
    with modules_of("soaking", names, JOBS / "studies") as found:
        found.study = importlib.import_module("soak")
        yield found


@pytest.fixture(autouse=True)
def soon(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that outlive their driver are ended at once."""
    monkeypatch.setattr(jobs.attempt, "_LEFT_OVER_SECONDS", 0.2)


def nothing(_fault: Any) -> Any:
    return lambda: None


def attempt(
    jobs: Any, tmp_path: Path, faults: list[Any], saves: Any = set, most_seconds: float = 60
) -> Any:
    command = [sys.executable, "-c", DRIVER]
    lives = {"driver": 1.0, "train worker": 1.0}
    told: list[Any] = []
    ended = jobs.attempt.attempt(
        command, tmp_path / "log", faults, saves, nothing, lives, told.append, most_seconds
    )
    assert told == ended.shown
    return ended


def test_faults_are_a_function_of_the_seed_and_all_kinds_are_drawn(jobs: Any) -> None:
    def drawn(seed: int, absent: tuple[str, ...] = ()) -> list[Any]:
        rng = random.Random(seed)
        return [f for _ in range(200) for f in jobs.faults.draw_faults(rng, ("full disk",), absent)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {fault.kind for fault in drawn(1)} == {"kill", "stop", "full disk"}
    assert {f.victim for f in drawn(1)} == {"", *jobs.faults.VICTIMS}
    assert any(f.name == "kill train worker at a save" for f in drawn(1))
    assert "engine" not in {fault.victim for fault in drawn(1, ("engine",))}


def test_one_fault_of_an_attempt_at_most_ends_it(jobs: Any) -> None:
    for seed in range(200):
        faults = jobs.faults.draw_faults(random.Random(seed), ("full disk",))
        assert 5 <= len(faults) <= 8
        assert sum(fault.ends for fault in faults) <= 1


def test_a_killed_worker_is_seen_below_its_driver(jobs: Any, tmp_path: Path) -> None:
    fault = jobs.faults.Fault("kill", "train worker", 0.1)
    ended = attempt(jobs, tmp_path, [fault])
    assert (ended.status, ended.shown, ended.left_over) == (1, [fault], [])


@pytest.mark.thorough
def test_what_outlives_a_killed_driver_is_ended_and_counted(jobs: Any, tmp_path: Path) -> None:
    stopped = jobs.faults.Fault("stop", "train worker", 0.0, seconds=0.5)
    killed = jobs.faults.Fault("kill", "driver", 1.5)
    ended = attempt(jobs, tmp_path, [stopped, killed])
    assert (ended.status, ended.shown) == (-9, [stopped, killed])
    assert len(ended.left_over) == 1


@pytest.mark.thorough
def test_a_fault_at_a_save_waits_for_so_many_new_checkpoints(jobs: Any, tmp_path: Path) -> None:
    begun = iter([{"a"}] * 10 + [{"a", "b"}] * 10 + [{"b", "c"}] * 1000)
    fault = jobs.faults.Fault("kill", "driver", 0.0, save=2)
    ended = attempt(jobs, tmp_path, [fault], lambda: next(begun))
    assert (ended.status, ended.shown) == (-9, [fault])
    assert "c" in next(begun)


def test_a_moment_is_a_share_of_the_time_that_its_victim_lives_undisturbed(jobs: Any) -> None:
    fault = jobs.faults.Fault("kill", "driver", 0.5)
    due = jobs.attempt._is_due
    watched = jobs.attempt._Watched(None)
    started = time.monotonic() - 10
    assert due(fault, watched, started, 0, {"driver": 19.0})
    assert not due(fault, watched, started, 0, {"driver": 200.0})


def test_an_attempt_that_takes_too_long_is_ended_and_called_hung(jobs: Any, tmp_path: Path) -> None:
    ended = attempt(jobs, tmp_path, [], most_seconds=0.3)
    assert (ended.status, ended.hung) == (-9, True)


def test_a_flipped_byte_differs_in_one_bit_and_is_put_back(jobs: Any, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"abc")
    name, restore = jobs.stores.flip(folder_of(str(tmp_path)), random.Random(0))
    found = (tmp_path / name).read_bytes()
    changed = [a ^ b for a, b in zip(found, b"abc", strict=True)]
    assert sum(bit.bit_count() for bit in changed) == 1
    assert restore()
    assert (tmp_path / name).read_bytes() == b"abc"


def test_a_byte_that_was_made_again_is_left_alone(jobs: Any, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"abc")
    name, restore = jobs.stores.flip(folder_of(str(tmp_path)), random.Random(0))
    (tmp_path / name).write_bytes(b"other")
    assert not restore()
    assert (tmp_path / name).read_bytes() == b"other"


def test_rows_lost_and_doubled_are_counted_for_themselves(jobs: Any) -> None:
    whole = jobs.outcome.Left({"scores": "x"}, {}, {"scores": Counter({"1": 1, "2": 1})}, 2)
    other = replace(whole, rows={"scores": Counter({"1": 2})})
    verdict = jobs.outcome.compare(other, whole)
    assert (verdict.lost, verdict.doubled, verdict.equal) == (1, 1, False)
    assert jobs.outcome.compare(whole, whole).equal


def test_other_content_weights_and_damage_are_named(jobs: Any) -> None:
    whole = jobs.outcome.Left({"scores": "x"}, {"model.safetensors": "y"}, {}, 0)
    other = jobs.outcome.Left({"scores": "z"}, {}, {}, 0, ["policy/model/config.json"])
    assert jobs.outcome.compare(other, whole).different == [
        "scores's content",
        "the policy's weights",
        "damaged: policy/model/config.json",
    ]


def test_the_tables_add_runs_up_and_show_those_that_are_not_equal(jobs: Any) -> None:
    make = jobs.results.Result
    twice = ["kill driver", "kill driver", "flip"]
    results = [
        make("folder", 0, 0, "round", 2, twice, made_again=["a"], rows=5),
        make("folder", 0, 1, "round", 1, ["kill driver"], lost=1, rows=4),
    ]
    lines = jobs.results.tables(results)
    assert "| folder | 2 | 3 | 4 | 9 | 1 | 0 | 1 |" in lines
    assert "| kill driver | folder | 3 | 2 | 9 | 1 | 0 | 1 |" in lines
    assert "| flip | folder | 1 | 1 | 5 | 0 | 0 | 1 |" in lines
    assert "Flipped bytes: made again 1, refused by name 0, not read 0." in lines


def test_results_and_faults_are_read_again_as_they_were_written(jobs: Any, tmp_path: Path) -> None:
    result = jobs.results.Result("s3", 1, 2, "round", faults=["flip"])
    assert jobs.results.read_results(tmp_path / "a") == []
    for _ in range(2):
        jobs.results.append(tmp_path / "a", asdict(result))
    assert jobs.results.read_results(tmp_path / "a") == [result] * 2


def test_the_page_counts_faults_of_ended_runs_and_tells_those_that_are_not_equal(
    jobs: Any, tmp_path: Path
) -> None:
    ended = jobs.results.Result("s3", 1, 2, "round", faults=["flip"], different=["damaged: a"])
    jobs.results.append(tmp_path / "results.jsonl", asdict(ended))
    for number in (2, 3, 3):
        fault = {"storage": "s3", "seed": 1, "number": number, "fault": "flip", "time": 0.0}
        jobs.results.append(tmp_path / "faults.jsonl", fault)
    text = jobs.page.page(tmp_path)
    assert "--storage s3 --seed 1 --most-faults 8 --first 2 --runs 1`" in text
    assert "- s3-1-2 (flip): damaged: a" in text
    assert "2 more faults occurred in runs that the end of the soak cut off" in text
    assert "1 faults in 1 runs that ended, 1 of `round`" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_the_jobs_of_a_soak_are_right_and_read_what_it_wrote(jobs: Any, tmp_path: Path) -> None:
    for name, job in jobs.jobs.write_jobs(tmp_path).items():
        config = load_config(job.config, ["name=a"])
        source = config.preferences or config.prompts
        assert Path(source.path).is_file(), name
        assert (config.preferences is not None) == ("engine" in job.absent)


def test_a_disk_that_is_full_has_room_again(jobs: Any, tmp_path: Path) -> None:
    fault = jobs.faults.Fault("full disk", "", 0.0, 1.0)
    with jobs.stores.store("folder", tmp_path) as place:
        if "full disk" not in place.others:
            pytest.skip("needs the right to mount a file system")
        end = place.begin(fault)
        with pytest.raises(OSError, match="No space left"):
            place.output.write_bytes("a", bytes(1 << 16))
        end()
        place.output.write_bytes("a", bytes(1 << 16))
