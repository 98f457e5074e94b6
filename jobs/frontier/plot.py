"""The figures of the frontier study: judge score against KL, and the reward beside the judge.

The colours are those of Okabe and Ito. Methods beyond the eighth repeat them with open markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grid.settings import Setting
from grid.style import DPI, STYLE

_COLOURS: Final = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#B8A800",
    "#333333",
)
_MARKERS: Final = "osv^DPX*"
_KL: Final = "KL(policy ‖ reference), nats per completion"


def draw_frontier(settings: Sequence[Setting], path: Path) -> None:
    """Write the PNG of judge score against KL: one colour a method, seeds as faint dots."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 5.2), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        _reference_line(axes, settings)
        for number, (method, own) in enumerate(_by_method(settings).items()):
            _method(axes, method, own, number)
        axes.set_xlabel(_KL)
        axes.set_ylabel("judge score (probability of “positive”)")
        figure.legend(loc="outside right upper", fontsize=8)
        _save(figure, path)


def draw_rewards(settings: Sequence[Setting], path: Path) -> None:
    """Write the PNG with a panel for each method: the reward that made the labels, and the judge."""
    methods = _by_method(settings)
    reference = [s for s in settings if s.method == "pi_ref"]
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * columns, 2.1 * rows + 0.5), dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels = [axes for row in grid for axes in row]
        for axes, (method, own) in zip(panels, methods.items(), strict=False):
            _two_rewards(axes, [*reference, *own])
            axes.set_title(method, fontsize=8, loc="left")
        for axes in panels[len(methods) :]:
            axes.set_axis_off()
        figure.supxlabel(_KL, fontsize=9)
        figure.supylabel("probability of “positive”", fontsize=9)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=3, fontsize=8)
        _save(figure, path)


def _method(axes: Axes, method: str, own: list[Setting], number: int) -> None:
    """Mark the means over seeds with intervals, joined in the order of KL."""
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    face = colour if number < len(_COLOURS) else "white"
    dots = [row for setting in own for row in setting.rows]
    axes.scatter(
        [row.mean("kl") for row in dots],
        [row.mean("score") for row in dots],
        s=9,
        color=colour,
        alpha=0.3,
        linewidths=0,
    )
    for place, line in enumerate(_lines(own)):
        axes.errorbar(
            [s.mean("kl") for s in line],
            [s.mean("score") for s in line],
            xerr=[s.half_width("kl") or 0.0 for s in line],
            yerr=[s.half_width("score") or 0.0 for s in line],
            label=method if not place else None,
            color=colour,
            marker=marker,
            markerfacecolor=face,
            markersize=5.5,
            linewidth=1,
            elinewidth=0.7,
            linestyle="-" if number < len(_COLOURS) else "--",
        )


def _lines(own: list[Setting]) -> list[list[Setting]]:
    """Return a line through all strengths of a method; of rounds, one through each strength's."""
    found: dict[str, list[Setting]] = {}
    for setting in own:
        row = setting.rows[0]
        found.setdefault("" if row.rounds is None else row.strength, []).append(setting)
    return [*found.values()]


def _two_rewards(axes: Axes, settings: list[Setting]) -> None:
    """Draw both classifiers' means against KL, and fill their gap."""
    ordered = sorted(settings, key=lambda s: s.mean("kl"))
    kl = [s.mean("kl") for s in ordered]
    given = [s.mean("reward_share") for s in ordered]
    judged = [s.mean("score") for s in ordered]
    axes.fill_between(kl, judged, given, color="#999999", alpha=0.2, linewidth=0)
    axes.plot(kl, given, color="#D55E00", marker="s", markersize=3.5, label="reward of the labels")
    axes.plot(kl, judged, color="#0072B2", marker="o", markersize=3.5, label="judge")


def _reference_line(axes: Axes, settings: Sequence[Setting]) -> None:
    for setting in settings:
        if setting.method == "pi_ref":
            score = setting.mean("score")
            axes.axhline(score, color="#999999", linestyle=":", linewidth=1)
            axes.plot([0], [score], marker="+", markersize=9, color="#333333", label="pi_ref")


def _by_method(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Return the settings of each method but pi_ref, by KL."""
    found: dict[str, list[Setting]] = {}
    for setting in sorted(settings, key=lambda s: s.mean("kl")):
        if setting.method != "pi_ref":
            found.setdefault(setting.method, []).append(setting)
    order = dict.fromkeys(s.method for s in settings if s.method in found)
    return {method: found[method] for method in order}


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
