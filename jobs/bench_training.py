r"""Measure the train step against TRL's DPOTrainer, in turn, in one run.

It prints a table, and one JSON object as the last line. With `--output` it also writes a page,
JSON and a plot.

    python jobs/bench_training.py --quick                     # within five minutes on 2 cores
    python jobs/bench_training.py --output docs/benchmarks    # everything
    python jobs/bench_training.py --profile                   # where our step's time goes

Each scenario's result is printed and kept in `--results` as soon as it is measured. The same
command goes on where it was stopped, and a whole run deletes that file at its end. Every contender
has its own process, and takes the same steps of the same data in turn. If TRL
(`pip install 'raydpo[peers]'`), Ray or vLLM is not installed, a line says that it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmark import report
from benchmark.flops import peak_flops
from benchmark.kept import Kept, source_hash
from benchmark.machine import Noise, Watch, said_of
from benchmark.processes import BenchmarkError, Worker, profile, take_turns, workers
from benchmark.results import Measured, measured
from benchmark.scenarios import (
    MODELS,
    Choices,
    Experiment,
    base,
    experiments,
    left_out,
    our_contenders,
)
from benchmark.spec import Precision
from raydpo.core.errors import RaydpoError


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    choices = choose(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-training-") as logs:
        try:
            if arguments.profile:
                print_profile(choices, arguments.threads, Path(logs))
            else:
                benchmark(choices, arguments, Path(logs))
        except RaydpoError as error:
            sys.exit(str(error))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the train step against TRL's.")
    parser.add_argument("--quick", action="store_true", help="only what the last line needs")
    parser.add_argument("--output", type=Path, help="folder for the page, JSON and plot")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/bench-training/unfinished.jsonl"),
        help="where the results of an unfinished run are kept",
    )
    parser.add_argument("--only", help="only scenarios whose name contains this")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="auto: bfloat16 where a matrix product in it is faster than in float32",
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="small", help="its shape")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument(
        "--repeats", type=int, choices=range(1, 13), help="timed turns", metavar="N"
    )
    parser.add_argument("--vllm", action="store_true", help="score the reference with vLLM too")
    parser.add_argument("--profile", action="store_true", help="print our step's costly operations")
    return parser.parse_args(argv)


def choose(arguments: argparse.Namespace) -> Choices:
    """Resolve what is `auto`."""
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = arguments.precision
    if precision == "auto":
        precision = fastest_precision(device)
    return Choices(
        device, precision, arguments.model, arguments.quick, arguments.vllm, arguments.repeats
    )


def fastest_precision(device: str) -> Precision:
    """The precision in which this machine multiplies large matrices fastest."""
    size = 2048 if device == "cpu" else 8192
    bfloat16, float32 = (peak_flops(p, device, size, 0.5) for p in ("bfloat16", "float32"))
    return "bfloat16" if bfloat16 > float32 else "float32"


def benchmark(choices: Choices, arguments: argparse.Namespace, logs: Path) -> None:
    """Measure all experiments, print the table and the last line, write the files."""
    notes = left_out(choices)
    print(*notes, sep="\n", flush=True)
    chosen = choose_experiments(choices, arguments.only)
    where = report.environment(arguments.threads, choices.device)
    kept = Kept(arguments.results, made_with(choices, where))
    if (found := kept.found()) is not None:
        print(found, flush=True)
    rows, failures = measure(chosen, arguments.threads, logs, kept)
    noises = [Noise(**result["noise"]) for result in kept.results.values()]
    notes += [*failures, said_of(noises)]
    print(f"\n{report.table(rows)}\n\n{said_of(noises)}\n")
    if arguments.output is not None:
        report.write(arguments.output, rows, chosen, where, notes)
    print(json.dumps(report.summary(rows)), flush=True)
    if failures:
        sys.exit("\n".join(failures))
    kept.finish()


def made_with(choices: Choices, where: dict[str, Any]) -> dict[str, Any]:
    """What a kept result depends on."""
    names = ("processor", "accelerator", "threads", "python", "versions")
    source = source_hash(("raydpo", "jobs/benchmark"))
    return {**asdict(choices), **{name: where[name] for name in names}, "source": source}


def choose_experiments(choices: Choices, only: str | None) -> list[Experiment]:
    """The experiments whose scenario's name contains `only`, or all of them.

    Raises:
        BenchmarkError: there is none.
    """
    found = experiments(choices)
    chosen = [e for e in found if only is None or only in e.scenario.name]
    if not chosen:
        names = ", ".join(f"`{experiment.scenario.name}`" for experiment in found)
        raise BenchmarkError(
            f"--only {only!r} is in no scenario's name",
            f"the scenarios{' of --quick' * choices.quick} are {names}",
            "give a part of one of these names",
        )
    return chosen


def measure(
    chosen: list[Experiment], threads: int, logs: Path, kept: Kept
) -> tuple[list[Measured], list[str]]:
    """Run the experiments one after the other; processes are kept where they may be.

    Those whose result is kept are not run again, and each new result is kept at once.

    Returns:
        What was measured, and a line for each experiment that failed: the others are kept.
    """
    rows: list[Measured] = []
    failures: list[str] = []
    started: dict[str, Worker] = {}
    for number, experiment in enumerate(chosen, 1):
        name = experiment.scenario.name
        try:
            if name not in kept.results:
                kept.add(name, measure_and_watch(experiment, threads, logs, started))
        except BenchmarkError as error:
            print(error, file=sys.stderr, flush=True)
            failures.append(f"{name} was not measured: {error.value.splitlines()[0]}")
            _close(started)  # nobody knows what they wait for
            continue
        new = [Measured(**row) for row in kept.results[name]["rows"]]
        noise = Noise(**kept.results[name]["noise"])
        progress = f"[{number}/{len(chosen)}] {name}: {noise.seconds:.0f} s, {noise}"
        print(progress, *report.rows_of(new), sep="\n", flush=True)
        rows += new
    _close(started)
    return rows, failures


def measure_and_watch(
    experiment: Experiment, threads: int, logs: Path, started: dict[str, Worker]
) -> dict[str, Any]:
    """What is kept of an experiment: its rows, and how busy the machine was."""
    with Watch() as watch:
        rows = measure_one(experiment, threads, logs, started)
    return {"rows": [asdict(row) for row in rows], "noise": watch.noise().as_json()}


def _close(kept: dict[str, Worker]) -> None:
    while kept:
        kept.popitem()[1].close()


def measure_one(
    experiment: Experiment, threads: int, logs: Path, kept: dict[str, Worker]
) -> list[Measured]:
    """Run one experiment, in new processes or in those that are kept."""
    device = experiment.scenario.device
    if experiment.fresh:
        with workers(list(experiment.contenders), threads, logs, device) as started:
            return measured(experiment, take_turns(experiment.scenario, started, experiment.turns))
    for contender in experiment.contenders:
        if contender.name not in kept:
            kept[contender.name] = Worker(contender, threads, logs, device)
    started = [kept[contender.name] for contender in experiment.contenders]
    return measured(experiment, take_turns(experiment.scenario, started, experiment.turns))


def print_profile(choices: Choices, threads: int, logs: Path) -> None:
    """Print where the time of our steps goes, for each attention backend."""
    for contender in our_contenders(choices):
        with workers([contender], threads, logs, choices.device) as (worker,):
            print(f"{contender.name}, 5 steps of {base(choices).name}, {choices.precision}")
            print(profile(base(choices), worker, warm_up=3, count=5), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
