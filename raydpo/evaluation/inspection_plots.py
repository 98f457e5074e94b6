"""Draw the figures of an inspection from what its items say, as PNG bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from raydpo.evaluation.drawing import INK, blank_figure, legend_above, png_of, styled
from raydpo.evaluation.plots import POLICY_COLOUR, REFERENCE_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]

_CHOSEN: Final = REFERENCE_COLOUR
_REJECTED: Final = POLICY_COLOUR
_CHANCE: Final = "#999999"
_LONGEST_LABEL: Final = 28
_MOST_TERMS: Final = 12


@styled()
def lengths_of_pairs(plot: Json) -> bytes:
    """Plot both lengths, and how often the longer completion is chosen by the size of the difference."""
    figure, (left, right) = blank_figure(10.0, 3.2, columns=2)
    edges = np.array(plot["edges"])
    for name, colour, line in (("chosen", _CHOSEN, "-"), ("rejected", _REJECTED, "--")):
        counts = np.array(plot[name], np.float64)
        shares = 100 * counts / max(counts.sum(), 1)
        left.stairs(shares, edges, color=colour, linestyle=line, linewidth=1.6, label=name)
    left.set_xlabel(f"length ({plot['unit']})")
    left.set_ylabel("share of completions (%)")
    legend_above(left)
    points = plot["longer_by_ratio"]
    times = [point["times"] for point in points]
    shares = np.array([point["share"] for point in points])
    ends = np.array([point["ci"] for point in points])
    bars = 100 * np.maximum(np.abs(ends.T - shares), 0.0)
    right.errorbar(times, 100 * shares, bars, fmt="o-", color=_CHOSEN, capsize=3, markersize=5)
    right.axhline(50, color=_CHANCE, linestyle=":", linewidth=1.2)
    right.set_ylim(0, 100)
    right.set_xscale("log")
    right.set_xlabel("how many times as long the longer completion is")
    right.set_ylabel("the longer one is chosen (%)")
    _plain_numbers(right)
    return png_of(figure)


@styled()
def terms_of_sides(plot: Json) -> bytes | None:
    """Plot the most certain terms of both sides, with intervals; None without any."""
    terms = plot["terms"]
    chosen = [one for one in terms if one["side"] == "chosen"][:_MOST_TERMS]
    rejected = [one for one in terms if one["side"] == "rejected"][:_MOST_TERMS]
    shown = [*chosen, *reversed(rejected)]
    if not shown:
        return None
    figure, (axis,) = blank_figure(10.0, 1.2 + 0.27 * len(shown))
    for place, one in enumerate(reversed(shown)):
        is_chosen = one["side"] == "chosen"
        ends = [one[name] if is_chosen else 1 - one[name] for name in ("low", "share", "high")]
        low, middle, high = (100 * end for end in (ends if is_chosen else ends[::-1]))
        colour = _CHOSEN if is_chosen else _REJECTED
        axis.plot([low, high], [place, place], color=colour, linewidth=1.4)
        axis.plot([middle], [place], "o" if is_chosen else "s", color=colour, markersize=5)
    axis.set_yticks(range(len(shown)), [_shortened(one["term"]) for one in reversed(shown)])
    axis.axvline(50, color=_CHANCE, linestyle=":", linewidth=1.2)
    axis.set_xlim(-1.5, 101.5)
    axis.set_xlabel(
        "where one completion alone has the term, it is the chosen one (%, at equal length)"
    )
    return png_of(figure)


@styled()
def sides_of_formats(plot: Json) -> bytes | None:
    """Plot how often the side with a property is chosen, with intervals; None without any."""
    shown = sorted(plot["properties"], key=lambda one: one["coverage"])
    if not shown:
        return None
    figure, (axis,) = blank_figure(10.0, 1.2 + 0.3 * len(shown))
    for place, one in enumerate(shown):
        low, high = one["ci"]
        axis.plot([100 * low, 100 * high], [place, place], color=_CHOSEN, linewidth=1.4)
        axis.plot([100 * one["value"]], [place], "o", color=_CHOSEN, markersize=5)
    labels = [f"{one['name']} ({100 * one['coverage']:.1f} % of pairs)" for one in shown]
    axis.set_yticks(range(len(shown)), labels)
    axis.axvline(50, color=_CHANCE, linestyle=":", linewidth=1.2)
    axis.set_xlim(-1.5, 101.5)
    axis.set_xlabel("where one completion alone has it, it is the chosen one (%)")
    return png_of(figure)


@styled()
def margins_of_pairs(plot: Json) -> bytes:
    """Plot the margins of the pairs."""
    figure, (axis,) = blank_figure(5.6, 3.2)
    _histogram(axis, plot, "pairs")
    axis.set_xlabel("margin of rewards")
    return png_of(figure)


@styled()
def rewards_by_prompt(plot: Json) -> bytes:
    """Plot the rewards of completions, and the means of prompts."""
    figure, (left, right) = blank_figure(10.0, 3.2, columns=2)
    _histogram(left, plot["rewards"], "completions")
    left.set_xlabel("reward")
    _histogram(right, plot["means"], "prompts")
    right.set_xlabel("mean reward of a prompt")
    return png_of(figure)


def _histogram(axis: Axes, plot: Json, of: str) -> None:
    counts = np.array(plot["counts"], np.float64)
    shares = 100 * counts / max(counts.sum(), 1)
    axis.stairs(shares, plot["edges"], fill=True, color="#8a949c")
    axis.axvline(plot["mean"], color=INK, linewidth=1.4, label=f"mean {plot['mean']:.3g}")
    axis.set_ylabel(f"share of {of} (%)")
    axis.legend(loc="best")


def _plain_numbers(axis: Axes) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_xlim()
    ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= tick <= high]
    axis.set_xticks(ticks)


def _shortened(term: str) -> str:
    return term if len(term) <= _LONGEST_LABEL else f"{term[:_LONGEST_LABEL]}…"
