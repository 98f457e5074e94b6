"""Does a run that meets random faults end like an undisturbed one?

    python jobs/studies/soak.py --output runs/soak --runs 20 --storage both

The options choose the number of runs, a seed and the storage. The output folder gets
faults.jsonl, a line for each fault when it occurs; results.jsonl, a line for each run; and
Markdown tables of all these lines.

The soak first runs two small jobs without faults. Every other run is one of them under faults.
The soak kills or stops its driver, Ray processes, engine and train workers at random moments. It
fills its disk, throttles its store, and flips a byte of its files between two attempts. It
repeats the same command until the job succeeds. It skips runs that results.jsonl already holds,
so you can make a long soak in pieces; an interrupted run starts again.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from soaking.attempt import Ended, attempt
from soaking.faults import DRAWS, Fault, draw_faults
from soaking.jobs import Job, JobName, write_jobs
from soaking.outcome import Left, Verdict, compare, look
from soaking.page import page
from soaking.results import Result, append, read_results, tables
from soaking.stores import Storage, Store, flip, store

from raydpo.core.errors import RaydpoError
from raydpo.core.storage import Folder

_ROOT: Final = Path(__file__).parents[2]
#: After so many attempts with faults, the job is left alone.
_DISTURBED_ATTEMPTS: Final = 3
#: A job that has not ended after so many attempts is given up, and counts as not equal.
_MOST_ATTEMPTS: Final = 8
_FLIP_SHARE: Final = 0.6
#: One run in so many is a whole round; the others train on preferences that exist.
_ROUND_EVERY: Final = 4


@dataclass(frozen=True)
class _Calm:
    """A job's undisturbed run: what it left, and how many seconds each of its processes lived."""

    left: Left
    lives: Mapping[str, float]


def main() -> None:
    """Read the options, do the runs that are missing, print the tables."""
    options = _parse()
    if options.page:
        options.page.write_text(page(options.output), encoding="utf-8")
        return
    # Ended, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    options.output.mkdir(parents=True, exist_ok=True)
    jobs = write_jobs(options.output / "jobs")
    file: Path = options.output / "results.jsonl"
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        for number in range(options.first, options.first + options.runs):
            for storage in get_args(Storage) if options.storage == "both" else (options.storage,):
                key = (storage, options.seed, number)
                if key in {(r.storage, r.seed, r.number) for r in read_results(file)}:
                    continue
                if time.monotonic() > until:
                    sys.exit("the time is over: the same command does the other runs")
                with store(storage, Path(name)) as place:
                    soak = _Soak(place, storage, options, jobs)
                    append(file, asdict(soak.disturbed(number)))
                print("\n".join(tables(read_results(file))), flush=True)
    if not all(result.equal for result in read_results(file)):
        sys.exit("a run did not end as the undisturbed one")


@dataclass(frozen=True)
class _Soak:
    """Runs in one storage."""

    place: Store
    storage: Storage
    options: argparse.Namespace
    jobs: dict[JobName, Job]

    def disturbed(self, number: int) -> Result:
        """One run with faults, to its end."""
        job: JobName = "round" if number % _ROUND_EVERY == _ROUND_EVERY - 1 else "preferences"
        calm = self._undisturbed(job)
        rng = random.Random(f"{self.options.seed} {self.storage} {number}")  # noqa: S311
        name = f"{self.storage}-{self.options.seed}-{number}"
        result = Result(self.storage, self.options.seed, number, job, commit=_commit())
        result.draws, result.most_faults = DRAWS, self.options.most_faults
        started = time.monotonic()
        flipped: list[tuple[str, Callable[[], bool]]] = []
        ended: Ended | None = None
        for index in range(_MOST_ATTEMPTS):
            faults: list[Fault] = []
            if index < _DISTURBED_ATTEMPTS:
                absent, most = self.jobs[job].absent, self.options.most_faults
                faults = draw_faults(rng, self.place.others, absent, most)
            log = self.options.output / "logs" / f"{name}-{index}.log"
            ended = self._attempt(job, name, log, faults, calm.lives, result)
            _settle(flipped, ended, result)
            print(_said(name, index, ended), flush=True)
            if ended.status == 0 or ended.hung:
                break
            if index < _DISTURBED_ATTEMPTS - 1 and rng.random() < _FLIP_SHARE:
                damaged = flip(self._run(name), rng)
                if damaged is not None:
                    flipped.append(damaged)
                    self._tell(result, "flip")
        verdict, result.rows = _judge(self._run(name), ended, calm.left)
        result.lost, result.doubled = verdict.lost, verdict.doubled
        result.different = verdict.different
        result.seconds = round(time.monotonic() - started, 1)
        if not result.equal:
            _keep(self._run(name), self.options.output / "unequal" / name)
        self._run(name).delete()
        return result

    def _undisturbed(self, job: JobName) -> _Calm:
        """The job's run without faults, which is done once for all storages."""
        file: Path = self.options.output / f"undisturbed-{job}.json"
        if not file.exists():
            name = f"undisturbed-{job}"
            log = self.options.output / "logs" / f"{name}.log"
            ended = self._attempt(job, name, log, [], {}, None)
            if ended.status != 0:
                sys.exit(f"the undisturbed run failed:\n{ended.log[-3000:]}")
            calm = {"left": vars(look(self._run(name))), "lives": dict(ended.lives)}
            self._run(name).delete()
            file.write_text(json.dumps(calm), encoding="utf-8")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        left: dict[str, Any] = found["left"]
        left["rows"] = {stage: Counter(names) for stage, names in left["rows"].items()}
        return _Calm(Left(**left), found["lives"])

    def _attempt(
        self,
        job: JobName,
        name: str,
        log: Path,
        faults: list[Fault],
        lives: Mapping[str, float],
        result: Result | None,
    ) -> Ended:
        """Give the command once."""
        log.parent.mkdir(parents=True, exist_ok=True)
        ended = attempt(
            self.jobs[job].command(self.place.output, name),
            log,
            faults,
            lambda: self.place.saves(name),
            self.place.begin,
            lives,
            lambda fault: self._tell(result, fault.name),
            60 * self.options.attempt_minutes,
        )
        if result is not None:
            result.attempts += 1
            result.left_over += ended.left_over
        return ended

    def _tell(self, result: Result | None, fault: str) -> None:
        """Note a fault when it is shown."""
        if result is not None:
            result.faults.append(fault)
            known = {name: getattr(result, name) for name in ("storage", "seed", "number", "job")}
            said = {**known, "attempt": result.attempts, "fault": fault, "time": time.time()}
            append(self.options.output / "faults.jsonl", said)

    def _run(self, name: str) -> Folder:
        return self.place.output.child(name)


def _said(name: str, index: int, ended: Ended) -> str:
    """A line about an attempt."""
    seconds = ended.lives.get("driver", 0.0)
    faults = ", ".join(fault.name for fault in ended.shown) or "no fault"
    return f"{name} attempt {index}: status {ended.status} after {seconds:.0f} s, {faults}"


def _keep(run: Folder, to: Path) -> None:
    """Copy the files of a run that is not equal, to be looked at."""
    for name in run.files(recursive=True):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(run.read_bytes(name))


def _commit() -> str:
    """The last commit that changed the package."""
    command = ["git", "-C", str(_ROOT), "log", "-1", "--format=%h", "--", "raydpo"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def _settle(flipped: list[tuple[str, Callable[[], bool]]], ended: Ended, result: Result) -> None:
    """See what became of flipped bytes, and put those right that are still there."""
    for name, restore in list(flipped):
        said = Path(name).name in ended.log
        if not restore():
            result.made_again.append(name)
        elif said and ended.status > 0:
            result.refused.append(name)
        else:
            result.unread.append(name)
    flipped.clear()


def _judge(run: Folder, ended: Ended | None, undisturbed: Left) -> tuple[Verdict, int]:
    """A run against the undisturbed one, and the rows that it accounts for."""
    if ended is None or ended.hung:
        return Verdict(0, 0, ["it did not end in its time"]), 0
    if ended.status != 0:
        return Verdict(0, 0, [f"it did not end: status {ended.status}"]), 0
    try:
        found = look(run)
    except RaydpoError as error:
        return Verdict(0, 0, [str(error).splitlines()[0]]), 0
    return compare(found, undisturbed), found.rows_seen


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="folder")
    parser.add_argument("--runs", type=int, default=10, help="for each storage")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help=f"number of the first run; every {_ROUND_EVERY}th is a round",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--storage", choices=(*get_args(Storage), "both"), default="folder")
    parser.add_argument("--minutes", type=float, default=1e9, help="no run is begun after these")
    parser.add_argument("--most-faults", type=int, default=8, help="of an attempt")
    parser.add_argument(
        "--page", type=Path, help="write a page of all results there, and run nothing"
    )
    parser.add_argument(
        "--attempt-minutes", type=float, default=20, help="an attempt that takes longer hangs"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
