"""The figures of the win-rate study.

The colours are those of Okabe and Ito; markers differ too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grid.style import DPI, STYLE
from raydpo.evaluation.metrics import Estimate
from winrate.points import WinRow
from winrate.statistics import Setting, by_label, settings_of

_COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#333333")
_MARKERS: Final = "os^DvX"
#: How far neighbouring methods are moved apart along the temperature, to show their bars.
_APART: Final = 0.012


def draw(rows: Sequence[WinRow], path: Path) -> None:
    """Write the PNG: win rate against temperature, and against N; bars are 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _temperatures(left, by_label(settings_of(rows, "temperature")))
        _curve(right, settings_of(rows, "curve"))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", facecolor="white")


def _temperatures(axes: Axes, methods: dict[str, dict[float, Setting]]) -> None:
    for number, (label, settings) in enumerate(methods.items()):
        places = [t + _APART * (number - len(methods) / 2) for t in settings]
        _bars(axes, places, [s.mean("wins") for s in settings.values()], label, number)
    _chance(axes)
    axes.set_xlabel("sampling temperature (0 is greedy)")
    axes.set_ylabel("win rate against pi_ref at temperature 1 (%)")
    if methods:
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)


def _curve(axes: Axes, settings: Sequence[Setting]) -> None:
    rising = sorted(settings, key=lambda s: s.n)
    if rising:
        wins = [s.mean("wins") for s in rising]
        _bars(axes, [float(s.n) for s in rising], wins, "best of N", len(_COLOURS) - 1)
        axes.set_xscale("log", base=2)
        axes.set_xticks([s.n for s in rising], [str(s.n) for s in rising])
    _chance(axes)
    axes.set_xlabel("N of Best-of-N, temperature 1")


def _bars(
    axes: Axes, places: list[float], estimates: list[Estimate], label: str, number: int
) -> None:
    means = [100 * e.mean for e in estimates]
    ends = [e.ci95 or (e.mean, e.mean) for e in estimates]
    below = [max(0.0, mean - 100 * low) for mean, (low, _) in zip(means, ends, strict=True)]
    above = [max(0.0, 100 * high - mean) for mean, (_, high) in zip(means, ends, strict=True)]
    axes.errorbar(
        places,
        means,
        yerr=[below, above],
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        label=label,
    )


def _chance(axes: Axes) -> None:
    axes.axhline(50, color="#999999", linestyle=":", linewidth=1)
