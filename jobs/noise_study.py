"""Which objective keeps its accuracy when labels are flipped?

    python jobs/noise_study.py --output runs/noise --plot docs/noise-study.png

What comes in: options; the model and the classifier in assets/. What goes out: results.jsonl in
the output folder, a Markdown table on the console, a plot. Objectives that take a rate are
told the true one. What results.jsonl holds already is not done again, so a long study can be
made in pieces (`--settings`, `--flip-rates`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from noise.contenders import FLIP_RATES, Result
from noise.model import prepare, run_model
from noise.world import run_world

#: Settings -> the title of their panel.
_TITLES: Final = {
    "exact": "enumerable world, all labels there can be",
    "world": "enumerable world, one label for each pair",
    "model": "demo model, held-out pairs with clean labels",
}
_MARKERS: Final = "osv^D*"


def main() -> None:
    """Read the options, do what is missing, print the tables, draw."""
    options = _parse()
    file: Path = options.output / "results.jsonl"
    results = _read(file)
    for setting in options.settings:
        for flip_rate in options.flip_rates:
            if any((r.setting, r.flip_rate) == (setting, flip_rate) for r in results):
                continue
            results += _run(setting, flip_rate, options)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(asdict(r)) + "\n" for r in results))
    shown = [setting for setting in _TITLES if any(r.setting == setting for r in results)]
    for setting in shown:
        print("\n".join(table(setting, results)), end="\n\n")
    if options.plot is not None:
        draw(shown, results, options.plot)
        print(f"wrote {options.plot}")


def table(setting: str, results: list[Result]) -> list[str]:
    """Lines of a Markdown table: an objective a row, a flip rate a column."""
    mine = [r for r in results if r.setting == setting]
    rates = sorted({r.flip_rate for r in mine})
    lines = [
        f"{_TITLES[setting]}: accuracy, %, ± one standard error",
        "",
        "| flipped | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |",
        "| --- |" + " --- |" * len(rates),
    ]
    for name in dict.fromkeys(r.objective for r in mine):
        cells = [_cell(r) for rate in rates for r in mine if _is(r, name, rate)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def draw(settings: list[str], results: list[Result], path: Path) -> None:
    """A panel a setting: accuracy against the flip rate."""
    figure = Figure(figsize=(5.5 * len(settings), 4.6), dpi=130, layout="constrained")
    panels: list[Axes] = [
        figure.add_subplot(1, len(settings), i) for i, _ in enumerate(settings, 1)
    ]
    for axes, setting in zip(panels, settings, strict=True):
        names = dict.fromkeys(r.objective for r in results if r.setting == setting)
        for number, name in enumerate(names):
            mine = [r for r in results if (r.setting, r.objective) == (setting, name)]
            mine.sort(key=lambda r: r.flip_rate)
            axes.errorbar(
                [r.flip_rate + 0.003 * (number - 2.5) for r in mine],
                [r.accuracy for r in mine],
                yerr=[r.standard_error for r in mine],
                label=name,
                marker=_MARKERS[number],
                markersize=5,
                linewidth=1,
                capsize=2,
            )
        axes.axhline(0.5, color="#999999", linestyle=":")
        axes.set_title(_TITLES[setting])
        axes.set_xlabel("share of training labels turned round")
        axes.set_ylabel("pairs in the order of the true rewards")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _run(setting: str, flip_rate: float, options: argparse.Namespace) -> list[Result]:
    if setting != "model":
        return run_world(flip_rate, options.seed, exact=setting == "exact")
    material = prepare(options.output / "material.json", options.prompts, options.seed)
    return run_model(material, flip_rate, options.seed, options.epochs)


def _cell(result: Result) -> str:
    more = "" if result.missing is None else f" (misses {result.missing:.2f})"
    return f"{100 * result.accuracy:.1f} ± {100 * result.standard_error:.1f}{more}"


def _is(result: Result, name: str, flip_rate: float) -> bool:
    return (result.objective, result.flip_rate) == (name, flip_rate)


def _read(file: Path) -> list[Result]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Objectives under flipped labels.")
    parser.add_argument("--output", type=Path, default=Path("runs/noise"), help="folder of results")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--settings", nargs="+", choices=list(_TITLES), default=list(_TITLES))
    parser.add_argument("--flip-rates", nargs="+", type=float, default=list(FLIP_RATES))
    parser.add_argument("--prompts", type=int, default=418, help="prompts of assets/prompts.jsonl")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training pairs")
    parser.add_argument("--seed", type=int, default=0, help="of samples, flips and order")
    return parser.parse_args()


if __name__ == "__main__":
    main()
