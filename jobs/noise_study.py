"""Which objective keeps its accuracy when labels are wrong?

    python jobs/noise_study.py --output runs/noise --plot docs/noise-study.png

The study uses the model and the classifiers in assets/. It writes results.jsonl to the output
folder, prints Markdown tables, and draws a plot. `--corruption` chooses between flipped labels and
labels drawn at random. Objectives that take a rate get the true one. It skips what results.jsonl
already holds. So you can run a long study in pieces (`--settings`, `--corruption`, `--rates`,
`--seeds`), and stop it anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from noise.contenders import RATES, Result, done
from noise.labels import CORRUPTIONS, Noise
from noise.model import prepare, run_model
from noise.plot import draw
from noise.tables import TITLES, tables
from noise.world import run_world
from raydpo.core.environment import CPU_ENVIRONMENT


def main() -> None:
    """Read the options, do what is missing, print the tables, draw."""
    options = _parse()
    file: Path = options.output / "results.jsonl"
    for setting in options.settings:
        for seed in options.seeds:
            for noise in (Noise(c, rate) for rate in options.rates for c in options.corruption):
                _complete(file, setting, noise, seed, options)
    results = _read(file)
    print("\n\n".join("\n".join(lines) for lines in tables(results)))
    if options.plot is not None:
        draw(results, options.plot)
        print(f"\nwrote {options.plot}")


def _complete(
    file: Path, setting: str, noise: Noise, seed: int, options: argparse.Namespace
) -> None:
    """Write the results of the objectives that have none yet."""
    started = time.monotonic()
    for result in _run(setting, noise, seed, options, done(_read(file), setting, noise, seed)):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
        seconds = time.monotonic() - started
        cell = f"{setting}, seed {seed}, {noise.rate:.0%} {noise.name}, {result.objective}"
        print(f"{cell}: {seconds:.0f} s", file=sys.stderr, flush=True)
        started = time.monotonic()


def _run(
    setting: str, noise: Noise, seed: int, options: argparse.Namespace, skip: set[str]
) -> Iterator[Result]:
    if setting != "model":
        return run_world(noise, seed, setting == "exact", skip)
    material = prepare(options.output / f"material-{seed}.json", options.prompts, seed)
    skip = skip | set(options.without)
    return run_model(material, noise, seed, options.epochs, skip)


def _read(file: Path) -> list[Result]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Objectives under wrong labels.")
    parser.add_argument("--output", type=Path, default=Path("runs/noise"), help="folder of results")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--settings", nargs="*", choices=list(TITLES), default=list(TITLES))
    parser.add_argument(
        "--corruption",
        nargs="+",
        choices=CORRUPTIONS,
        default=list(CORRUPTIONS),
        help="flips turn labels round; outliers are labels drawn uniformly",
    )
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=418, help="prompts of assets/prompts.jsonl")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training pairs")
    parser.add_argument(
        "--without", nargs="*", default=["hinge"], help="objectives not run on the model"
    )
    return parser.parse_args()


def _restart_with_worker_environment() -> None:
    """Train as fast as workers do: the variables must be there when the process starts."""
    if any(os.environ.get(name) != value for name, value in CPU_ENVIRONMENT):
        environment = {**os.environ, **dict(CPU_ENVIRONMENT)}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606


if __name__ == "__main__":
    _restart_with_worker_environment()
    main()
