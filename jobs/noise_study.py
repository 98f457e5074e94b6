"""Which objective keeps its accuracy when labels are flipped?

    python jobs/noise_study.py --output runs/noise --plot docs/noise-study.png

The study uses the model and the classifiers in assets/. It writes results.jsonl to the output
folder, prints Markdown tables, and draws a plot. Objectives that take a rate get the true one. It
skips what results.jsonl already holds. So you can run a long study in pieces (`--settings`,
`--flip-rates`), and stop it anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from noise.contenders import FLIP_RATES, Result
from noise.model import prepare, run_model
from noise.plot import draw
from noise.world import run_world
from raydpo.core.environment import CPU_ENVIRONMENT
from raydpo.evaluation.metrics import Estimate

#: Settings -> what they are.
TITLES: Final = {
    "exact": "enumerable world, all labels there can be",
    "world": "enumerable world, one label for each pair",
    "model": "demo model, held-out pairs with clean labels",
}
#: What the others are compared with.
BASELINE: Final = "dpo"


def main() -> None:
    """Read the options, do what is missing, print the tables, draw."""
    options = _parse()
    file: Path = options.output / "results.jsonl"
    for setting in options.settings:
        for flip_rate in options.flip_rates:
            done = {r.objective for r in _read(file) if _is(r, setting, flip_rate)}
            for result in _run(setting, flip_rate, options, done):
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, "a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(result)) + "\n")
    results = _read(file)
    print("\n\n".join("\n".join(lines) for lines in tables(results)))
    if options.plot is not None:
        draw(results, TITLES, options.plot)
        print(f"\nwrote {options.plot}")


def tables(results: list[Result]) -> Iterator[list[str]]:
    """Lines of Markdown tables: an objective a row, a flip rate a column."""
    for setting, title in TITLES.items():
        mine = [r for r in results if r.setting == setting]
        if not mine:
            continue
        yield [f"{title}: accuracy, %, ± one standard error", "", *_table(mine, _accuracy)]
        if mine[0].scores:
            yield ["judge score of samples, the same", "", *_table(mine, _score)]


def _table(results: list[Result], cell: Callable[[Result, Result], str]) -> list[str]:
    rates = sorted({r.flip_rate for r in results})
    lines = [
        "| flipped | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |",
        "| --- |" + " --- |" * len(rates),
    ]
    found = {(r.objective, r.flip_rate): r for r in results}
    for name in dict.fromkeys(r.objective for r in results):
        own = [found.get((name, rate)) for rate in rates]
        bases = [found.get((BASELINE, rate)) for rate in rates]
        cells = [cell(r, b or r) if r else "" for r, b in zip(own, bases, strict=True)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def _accuracy(result: Result, baseline: Result) -> str:
    text = _percent(result.accuracy)
    if result.missing is not None:
        return f"{text} (misses {result.missing:.2f})"
    return text + ("" if result is baseline else f" ({_percent(result.gain(baseline), '+')})")


def _score(result: Result, baseline: Result) -> str:
    text = _percent(result.score)
    more = "" if result is baseline else f" ({_percent(result.score_gain(baseline), '+')})"
    return text + more


def _percent(estimate: Estimate, sign: str = "") -> str:
    return f"{100 * estimate.mean:{sign}.1f} ± {100 * (estimate.standard_error or 0.0):.1f}"


def _run(
    setting: str, flip_rate: float, options: argparse.Namespace, done: set[str]
) -> Iterator[Result]:
    if setting != "model":
        return run_world(flip_rate, options.seed, setting == "exact", done)
    material = prepare(options.output / "material.json", options.prompts, options.seed)
    return run_model(material, flip_rate, options.seed, options.epochs, done)


def _is(result: Result, setting: str, flip_rate: float) -> bool:
    return (result.setting, result.flip_rate) == (setting, flip_rate)


def _read(file: Path) -> list[Result]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Objectives under flipped labels.")
    parser.add_argument("--output", type=Path, default=Path("runs/noise"), help="folder of results")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--settings", nargs="*", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--flip-rates", nargs="+", type=float, default=list(FLIP_RATES))
    parser.add_argument("--prompts", type=int, default=418, help="prompts of assets/prompts.jsonl")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training pairs")
    parser.add_argument("--seed", type=int, default=0, help="of samples, flips and order")
    return parser.parse_args()


def _restart_with_worker_environment() -> None:
    """Train as fast as workers do: the variables must be there when the process starts."""
    if any(os.environ.get(name) != value for name, value in CPU_ENVIRONMENT):
        environment = {**os.environ, **dict(CPU_ENVIRONMENT)}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606


if __name__ == "__main__":
    _restart_with_worker_environment()
    main()
