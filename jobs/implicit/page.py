"""Tables, JSON and plot of the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from implicit import scores as judges
from implicit.measures import accuracy, calibration, difference, fitted_temperature
from implicit.scores import Scores
from raydpo.evaluation.metrics import Estimate

_ORDER: Final = (
    judges.POLICY,
    judges.REWARD,
    judges.BASE_SUM,
    judges.BASE_MEAN,
    judges.ORIGINAL_SUM,
    judges.ORIGINAL_MEAN,
    judges.LONGER,
    judges.LENGTH,
    judges.RANDOM,
)
_DRAWN: Final = (judges.POLICY, judges.REWARD, judges.BASE_SUM, judges.LENGTH)
#: Differences that are listed: judge, less the other.
_COMPARED: Final = (
    (judges.POLICY, judges.REWARD),
    (judges.POLICY, judges.BASE_SUM),
    (judges.POLICY, judges.BASE_MEAN),
    (judges.POLICY, judges.LENGTH),
    (judges.REWARD, judges.LENGTH),
)


def by_data(scores: Sequence[Scores]) -> dict[str, list[Scores]]:
    """Scores of all seeds by data set."""
    found: dict[str, list[Scores]] = {}
    for one in sorted(scores, key=lambda s: s.seed):
        found.setdefault(one.data, []).append(one)
    return found


def as_json(scores: Sequence[Scores]) -> dict[str, Any]:
    """All numbers of the tables and the plot, by data set."""
    return {data: _numbers(own) for data, own in by_data(scores).items()}


def tables(numbers: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of Markdown tables: the judges of each data set, and their differences."""
    for data, own in numbers.items():
        pairs, seeds = own["pairs"], len(own["seeds"])
        yield [
            f"{data}: {pairs} held-out pairs of {own['prompts']} prompts, {seeds} seeds",
            "",
            "| judge | accuracy, % | by seed | ECE, % | ECE after T, % | log loss after T |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_row(judge, found) for judge, found in own["judges"].items()),
        ]
        yield [
            "| difference of accuracy | points |",
            "| --- | --- |",
            *(f"| {name} | {_points(found)} |" for name, found in own["differences"].items()),
        ]


def draw(numbers: dict[str, Any], path: Path) -> None:
    """Write reliability diagrams as a PNG: a column for each data set, T = 1 above fitted T."""
    figure = Figure(figsize=(3.6 * len(numbers), 6.6), dpi=80, layout="constrained")
    for column, (data, own) in enumerate(numbers.items(), 1):
        for row, kind in enumerate(("raw", "fitted")):
            axes = figure.add_subplot(2, len(numbers), row * len(numbers) + column)
            _diagram(axes, own["judges"], kind)
            axes.set_title(f"{data}, {'T = 1' if kind == 'raw' else 'T fitted'}", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _diagram(axes: Axes, found: dict[str, Any], kind: str) -> None:
    axes.plot([0.5, 1], [0.5, 1], color="#999999", linestyle=":")
    for number, judge in enumerate(_DRAWN):
        bins = found[judge][kind]["bins"]
        x, y = [sure for sure, _, _ in bins], [right for _, right, _ in bins]
        axes.plot(x, y, label=judge, marker="osv^"[number], markersize=4, linewidth=1)
    axes.set_xlabel("probability of the preferred completion")
    axes.set_ylabel("share of pairs where it was chosen")
    axes.set_ylim(0.2, 1.02)


def _numbers(scores: list[Scores]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for judge in (name for name in _ORDER if name in scores[0].margins):
        right = accuracy(scores, judge)
        found[judge] = {
            "accuracy": right.as_json(),
            "by_seed": [accuracy([one], judge).mean for one in scores],
            "temperatures": [_number(fitted_temperature(one, judge)) for one in scores],
            "raw": asdict(calibration(scores, judge, fitted=False)),
            "fitted": asdict(calibration(scores, judge, fitted=True)),
        }
    return {
        "seeds": [one.seed for one in scores],
        "pairs": sum(len(one.prompts) for one in scores),
        "prompts": len({prompt for one in scores for prompt in one.prompts}),
        "training_pairs": [one.training_pairs for one in scores],
        "longer_wins_in_training": [one.longer_wins for one in scores],
        "measured_in_training": [one.accuracies for one in scores],
        "judges": found,
        "differences": {
            f"{judge} − {other}": _difference(difference(scores, judge, other))
            for judge, other in _COMPARED
        },
    }


def _number(value: float) -> float | None:
    return value if value < float("inf") else None


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {**estimate.as_json(), "z": estimate.z}


def _row(judge: str, found: dict[str, Any]) -> str:
    seeds = ", ".join(f"{100 * value:.1f}" for value in found["by_seed"])
    raw, fitted = found["raw"], found["fitted"]
    cells = [judge, _points(found["accuracy"]), seeds, _ece(raw), _ece(fitted)]
    return f"| {' | '.join(cells)} | {fitted['log_loss']:.3f} |"


def _points(found: dict[str, Any]) -> str:
    low, high = found["ci95"] or (float("nan"), float("nan"))
    return f"{100 * found['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _ece(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    chance = 100 * found["chance"]
    return f"{100 * found['ece']:.1f} [{100 * low:.1f}, {100 * high:.1f}] (perfect: {chance:.1f})"
