"""Does a run that meets faults at random end as an undisturbed one?

    python jobs/studies/soak.py --output runs/soak --runs 20 --storage both

What comes in: how many runs, a seed, the storage. What goes out: results.jsonl in the output
folder, a line for each run, and Markdown tables of all its lines. A small job is run without faults
once; every other run is the same job, whose driver, Ray processes, engine and train workers are killed
or stopped at random moments, whose disk fills up, whose store throttles, and whose files get
a byte flipped between two attempts. The same command is given until the job ends well.
Runs that results.jsonl holds already are not done again, so a long soak can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from soaking.attempt import Ended, attempt
from soaking.faults import Fault, draw_faults
from soaking.outcome import Left, Verdict, compare, look
from soaking.stores import Storage, Store, flip, store

from raydpo.errors import RaydpoError
from raydpo.storage import Folder

_ROOT: Final = Path(__file__).parents[2]
#: After so many attempts with faults, the job is left alone.
_DISTURBED_ATTEMPTS: Final = 4
#: A job that has not ended after so many attempts is given up, and counts as not equal.
_MOST_ATTEMPTS: Final = 8
_FLIP_SHARE: Final = 0.4
#: The job of the demo, as small as it goes.
_SETTINGS: Final[dict[str, Any]] = {
    "rows_per_part": 4,
    "sampling.candidates": 2,
    "sampling.max_completion_tokens": 24,
    "labeling.pairs.min_margin": 0.0,
    "training.epochs": 3,
    "training.global_batch_groups": 4,
    "training.checkpoint_every_steps": 3,
    "evaluation.samples_per_prompt": 2,
}


@dataclass
class Result:
    """One run.

    Attributes:
        storage: where it lay.
        seed, number: what its faults were drawn by.
        attempts: how often the command was given.
        faults: names of what was shown.
        refused: files whose damage was named in an error, and which were put right by hand.
        made_again: files whose damage went away by itself.
        unread: files whose damage nobody read; they were put right by hand.
        left_over: processes that outlived their driver by half a minute.
        lost, doubled, different: against the undisturbed run.
        rows: that the run accounts for.
        seconds: of all attempts.
    """

    storage: str
    seed: int
    number: int
    attempts: int = 0
    faults: list[str] = field(default_factory=lambda: [])
    refused: list[str] = field(default_factory=lambda: [])
    made_again: list[str] = field(default_factory=lambda: [])
    unread: list[str] = field(default_factory=lambda: [])
    left_over: list[str] = field(default_factory=lambda: [])
    lost: int = 0
    doubled: int = 0
    different: list[str] = field(default_factory=lambda: [])
    rows: int = 0
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether it ended as the undisturbed run."""
        return not (self.lost or self.doubled or self.different)


def main() -> None:
    """Read the options, do the runs that are missing, print the tables."""
    options = _parse()
    options.output.mkdir(parents=True, exist_ok=True)
    file: Path = options.output / "results.jsonl"
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        prompts = _write_prompts(Path(name))
        for storage in get_args(Storage) if options.storage == "both" else (options.storage,):
            done = {(r.storage, r.seed, r.number) for r in read_results(file)}
            numbers = [n for n in range(options.runs) if (storage, options.seed, n) not in done]
            with store(storage, Path(name)) as place:
                _soak(place, storage, options, numbers, prompts, file, until)
    print("\n".join(tables(read_results(file))))
    if not all(result.equal for result in read_results(file)):
        sys.exit("a run did not end as the undisturbed one")


def _soak(
    place: Store,
    storage: Storage,
    options: argparse.Namespace,
    numbers: list[int],
    prompts: list[str],
    file: Path,
    until: float,
) -> None:
    """Do these runs, and one without faults before them."""
    if not numbers or time.monotonic() > until:
        return
    calm = _Job(place, options.output / "logs", "undisturbed", prompts)
    ended = calm.attempt([])
    if ended.status != 0:
        sys.exit(f"the undisturbed run failed:\n{ended.log[-3000:]}")
    undisturbed = look(calm.run)
    for number in numbers:
        if time.monotonic() > until:
            print("the time is over: the same command does the other runs", flush=True)
            return
        result = _disturbed(place, storage, options, number, prompts, undisturbed)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
        said = "equal" if result.equal else "NOT EQUAL"
        print(
            f"{storage} {number}: {said}, {result.attempts} attempts, {result.faults}", flush=True
        )


@dataclass
class _Job:
    """The job under one name: its command, and its run directory."""

    place: Store
    logs: Path
    name: str
    prompts: list[str]
    count: int = 0

    @property
    def run(self) -> Folder:
        """The run directory."""
        return self.place.output.child(self.name)

    def attempt(self, faults: list[Fault]) -> Ended:
        """Give the command once."""
        self.logs.mkdir(parents=True, exist_ok=True)
        settings = {**_SETTINGS, "output": self.place.output.uri, "name": self.name}
        chosen = [f"--set={name}={value}" for name, value in settings.items()]
        config = str(_ROOT / "jobs" / "demo.yaml")
        command = [sys.executable, "-m", "raydpo.cli", "run", config, *chosen, *self.prompts]
        log = self.logs / f"{self.name}-{self.count}.log"
        self.count += 1
        return attempt(command, log, faults, self._saves, self.place.begin)

    def _saves(self) -> int:
        """Files of checkpoints so far."""
        if not self.run.is_local:
            return 0  # asked for too often for a store
        checkpoints = self.run.local_path("round-000", "policy", "checkpoints")
        return sum(1 for _ in checkpoints.glob("checkpoint_*/*"))


def _disturbed(
    place: Store,
    storage: Storage,
    options: argparse.Namespace,
    number: int,
    prompts: list[str],
    undisturbed: Left,
) -> Result:
    """One run with faults, to its end."""
    rng = random.Random(f"{options.seed} {storage} {number}")  # noqa: S311  (not a secret)
    name = f"{storage}-{options.seed}-{number}"
    job = _Job(place, options.output / "logs", name, prompts)
    result = Result(storage, options.seed, number)
    started = time.monotonic()
    flipped: list[tuple[str, Callable[[], bool]]] = []
    status = 0
    for index in range(_MOST_ATTEMPTS):
        faults = draw_faults(rng, place.others) if index < _DISTURBED_ATTEMPTS else []
        ended = job.attempt(faults)
        status = ended.status
        result.attempts += 1
        result.faults += [fault.name for fault in ended.shown]
        result.left_over += ended.left_over
        _settle(flipped, ended, result)
        if status == 0:
            break
        if index < _DISTURBED_ATTEMPTS - 1 and rng.random() < _FLIP_SHARE:
            damaged = flip(job.run, rng)
            if damaged is not None:
                flipped.append(damaged)
                result.faults.append("flip")
    verdict, result.rows = _judge(job.run, status, undisturbed)
    result.lost, result.doubled = verdict.lost, verdict.doubled
    result.different = verdict.different
    result.seconds = round(time.monotonic() - started, 1)
    if result.equal:
        job.run.delete()
    return result


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


def _judge(run: Folder, status: int, undisturbed: Left) -> tuple[Verdict, int]:
    """A run against the undisturbed one, and the rows that it accounts for."""
    if status != 0:
        return Verdict(0, 0, [f"it did not end: status {status}"]), 0
    try:
        found = look(run)
    except RaydpoError as error:
        return Verdict(0, 0, [str(error).splitlines()[0]]), 0
    return compare(found, undisturbed), found.rows_seen


def read_results(file: Path) -> list[Result]:
    """All lines of results.jsonl."""
    if not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def tables(results: list[Result]) -> list[str]:
    """Markdown: a row for each storage, and one for each fault."""
    head = ("storage", "runs", "attempts", "faults", "rows", "lost", "doubled", "equal")
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for storage in dict.fromkeys(result.storage for result in results):
        own = [result for result in results if result.storage == storage]
        sums = [
            sum(r.attempts for r in own),
            sum(len(r.faults) for r in own),
            sum(r.rows for r in own),
            sum(r.lost for r in own),
            sum(r.doubled for r in own),
            sum(r.equal for r in own),
        ]
        lines.append(_line([storage, len(own), *sums]))
    lines += [
        "",
        _line(("fault", "shown", "in runs that ended equal")),
        _line(["---", "---:", "---:"]),
    ]
    shown = Counter(fault for result in results for fault in result.faults)
    well = Counter(fault for result in results if result.equal for fault in result.faults)
    lines += [_line([fault, count, well[fault]]) for fault, count in shown.most_common()]
    damage = {
        "made again": [name for result in results for name in result.made_again],
        "refused by name": [name for result in results for name in result.refused],
        "not read": [name for result in results for name in result.unread],
    }
    lines += ["", "Flipped bytes: " + ", ".join(f"{k} {len(v)}" for k, v in damage.items()) + "."]
    outlived = sum(len(result.left_over) for result in results)
    return [*lines, f"Processes that outlived their driver by half a minute: {outlived}."]


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _write_prompts(work: Path) -> list[str]:
    """A few of the shipped prompts; returns the settings that name them."""
    settings: list[str] = []
    for name, setting, count in (
        ("prompts.jsonl", "prompts.path", 40),
        ("heldout-prompts.jsonl", "evaluation.prompts", 6),
    ):
        lines = (_ROOT / "assets" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (work / name).write_text("".join(lines[:count]), encoding="utf-8")
        settings.append(f"--set={setting}={work / name}")
    return settings


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="folder")
    parser.add_argument("--runs", type=int, default=10, help="for each storage")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--storage", choices=(*get_args(Storage), "both"), default="folder")
    parser.add_argument("--minutes", type=float, default=1e9, help="no run is begun after these")
    return parser.parse_args()


if __name__ == "__main__":
    main()
