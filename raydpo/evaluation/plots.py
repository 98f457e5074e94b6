"""Draw the report's figures, as PNG bytes.

The colours are those of Okabe and Ito, which people with any colour vision can tell apart; shape or
hatching differs too. The module avoids pyplot and its global state: each figure is a separate
object.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from raydpo.core.metric_names import heldout_values
from raydpo.evaluation.drawing import INK, blank_figure, legend_above, png_of, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE_COLOUR: Final = "#0072B2"
POLICY_COLOUR: Final = "#D55E00"
#: Colour, line and marker of each run in a comparison; further runs begin anew.
_LOOKS: Final = (
    ("#D55E00", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", "-", "v"),
    ("#56B4E9", "--", "P"),
    ("#333333", "-.", "X"),
)
_CURVES: Final = (
    ("loss", "loss (nats)"),
    ("rewards/margins", "implicit reward margin (nats × beta)"),
    ("rewards/accuracies", "implicit reward accuracy"),
)
_MEASURED: Final = (
    ("loss", "loss (nats)"),
    ("perplexity", "perplexity"),
    ("rewards/accuracies", "accuracy"),
    ("rewards/margins", "margin"),
    ("rewards/chosen", "reward of chosen"),
    ("rewards/rejected", "reward of rejected"),
    ("logps/chosen", "log-prob of chosen (nats)"),
    ("logps/rejected", "log-prob of rejected (nats)"),
)


@styled()
def training_curves(rows: Sequence[dict[str, Any]]) -> bytes | None:
    """Plot loss, margins and accuracies against optimizer steps; None if the log has none.

    If a resumed run repeated steps, only their last values count.
    """
    by_step = {row["step"]: row for row in rows if "step" in row}
    named = [(key, label) for key, label in _CURVES if any(key in r for r in by_step.values())]
    if not named:
        return None
    figure, axes = blank_figure(width=10.0, height=2.9, columns=len(named))
    for axis, (key, label) in zip(axes, named, strict=True):
        points = [(step, row[key]) for step, row in sorted(by_step.items()) if key in row]
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else ""
        axis.plot(steps, values, color=POLICY_COLOUR, marker=marker, markersize=3, linewidth=1.6)
        axis.set_xlabel("optimizer step")
        axis.set_title(label, loc="left")
        _whole_numbers(axis)
        if key == "rewards/accuracies":
            axis.axhline(0.5, color="#999999", linestyle=":", linewidth=1.2)
            axis.set_ylim(-0.02, 1.02)
    return png_of(figure)


@styled()
def heldout_curves(rows: Sequence[dict[str, Any]], exported: int | None = None) -> bytes | None:
    """Plot metrics on held-out data and on training batches against steps; None without the former.

    Args:
        rows: rows of metrics.jsonl, with that of step 0 if there is one.
        exported: the step that was exported, to mark it; None if it is the last one.
    """
    by_step = {row["step"]: row for row in rows}
    points = {step: heldout_values(row) for step, row in sorted(by_step.items())}
    named = [(k, label) for k, label in _MEASURED if any(k in values for values in points.values())]
    if not named:
        return None
    rows_of_axes = -(-len(named) // 3)
    figure, axes = blank_figure(
        width=10.0, height=3.0 * rows_of_axes, columns=min(3, len(named)), rows=rows_of_axes
    )
    for axis, (key, label) in zip(axes, named, strict=False):
        _train_and_heldout(axis, key, by_step, points)
        axis.set_title(label, loc="left")
        axis.set_xlabel("optimizer step")
        _whole_numbers(axis)
        if exported is not None:
            axis.axvline(exported, color=INK, linestyle=":", linewidth=1.2, label="exported")
    for axis in axes[len(named) :]:
        axis.set_axis_off()
    axes[0].legend(loc="best")
    return png_of(figure)


def _train_and_heldout(
    axis: Axes,
    key: str,
    by_step: dict[int, dict[str, Any]],
    points: dict[int, dict[str, float]],
) -> None:
    trained = [(step, row[key]) for step, row in sorted(by_step.items()) if key in row]
    if trained:
        steps, values = zip(*trained, strict=True)
        axis.plot(
            steps,
            values,
            color=REFERENCE_COLOUR,
            alpha=0.55,
            linewidth=1.2,
            label="training batches",
        )
    measured = [(step, values[key]) for step, values in points.items() if key in values]
    steps, values = zip(*measured, strict=True)
    axis.plot(
        steps, values, "o-", color=POLICY_COLOUR, markersize=4, linewidth=1.6, label="held-out data"
    )


@styled()
def score_distributions(
    reference: Sequence[float], policy: Sequence[float], unit: str, bins: int = 24
) -> bytes:
    """Plot the distribution of judge scores for both models, with means as lines."""
    figure, (axis,) = blank_figure(width=5.6, height=3.3)
    edges = _edges([*reference, *policy], bins)
    _two_histograms(axis, reference, policy, edges)
    axis.set_xlabel(f"judge score ({unit})")
    axis.set_ylabel("share of completions (%)")
    return png_of(figure)


@styled()
def lengths(reference: Sequence[int], policy: Sequence[int], limit: int) -> bytes:
    """Plot the distribution of lengths in tokens for both models, with means as lines."""
    figure, (axis,) = blank_figure(width=5.6, height=3.3)
    width = max(1, -(-limit // 24))
    edges = np.arange(0.5, limit + width + 0.5, width)
    _two_histograms(axis, reference, policy, edges)
    axis.set_xlabel(f"completion length (tokens; limit {limit})")
    axis.set_ylabel("share of completions (%)")
    return png_of(figure)


@styled()
def label_rewards(rewards: Sequence[float], margins: Sequence[float], unit: str) -> bytes:
    """Plot the rewards of labelled completions, and the margins of their pairs if there are any."""
    named = [(rewards, f"reward ({unit})", "completions"), (margins, "margin of rewards", "pairs")]
    shown = [one for one in named if one[0]]
    figure, axes = blank_figure(width=10.0, height=2.9, columns=len(shown))
    for axis, (values, what, of) in zip(axes, shown, strict=True):
        mean, weights = float(np.mean(values)), np.full(len(values), 100 / len(values))
        axis.hist(values, bins=_edges(values, 40), weights=weights, color="#8a949c")
        axis.axvline(mean, color=INK, linewidth=1.4, label=f"mean {mean:.3g}")
        axis.set_xlabel(what)
        axis.set_ylabel(f"share of {of} (%)")
        axis.set_title(f"{len(values):,} {of}", loc="left")
        axis.legend(loc="best")
    return png_of(figure)


@styled()
def score_against_kl(
    reference_score: dict[str, Any], policy_score: dict[str, Any], kl: dict[str, Any], unit: str
) -> bytes:
    """Plot judge score against KL from the reference, which is at 0; bars are 95 % intervals.

    The arguments are estimates in the format of `metrics.json`.
    """
    figure, (axis,) = blank_figure(width=5.6, height=3.3)
    axis.plot(
        [0, kl["mean"]],
        [reference_score["mean"], policy_score["mean"]],
        color="#999999",
        linestyle=":",
        linewidth=1.2,
        zorder=1,
    )
    marks = (
        ("reference", None, reference_score, REFERENCE_COLOUR, "s"),
        ("policy", kl, policy_score, POLICY_COLOUR, "o"),
    )
    for name, along, score, colour, marker in marks:
        _mark_score(axis, name, score, along, colour, marker)
    axis.margins(x=0.12, y=0.18)
    axis.set_xlabel("KL(policy || reference) (nats per completion)")
    axis.set_ylabel(f"judge score\n({unit})")
    legend_above(axis)
    return png_of(figure)


@styled()
def best_of_against_kl(
    rows: Sequence[dict[str, Any]],
    policy_score: dict[str, Any] | None,
    policy_kl: dict[str, Any] | None,
    unit: str,
) -> bytes:
    """Plot the judge score of the reference's Best-of-N against its KL, with 95 % intervals.

    Args:
        rows: a value for each N, as `measure_best_of` returns them.
        policy_score: the trained policy's, as in metrics.json; None if there is none.
        policy_kl: its KL.
        unit: the meaning of the judge score.
    """
    figure, (axis,) = blank_figure(width=5.6, height=3.3)
    scores = [row["score"] for row in rows]
    kls = [row["kl_nats_per_completion"]["mean"] for row in rows]
    means = [score["mean"] for score in scores]
    bars = np.hstack([_bar(s) if s["ci95"] else np.zeros((2, 1)) for s in scores])
    axis.errorbar(
        kls,
        means,
        bars,
        fmt="s-",
        color=REFERENCE_COLOUR,
        capsize=3,
        markersize=4,
        label="best of N of the reference",
    )
    for row, kl, mean in zip(rows, kls, means, strict=True):
        axis.annotate(str(row["n"]), (kl, mean), (4, -11), textcoords="offset points", size=8)
    if policy_score is not None and policy_kl is not None:
        _mark_score(axis, "policy", policy_score, policy_kl, POLICY_COLOUR, "o")
    axis.margins(x=0.12, y=0.18)
    axis.set_xlabel("KL from the reference (nats per completion)")
    axis.set_ylabel(f"judge score\n({unit})")
    legend_above(axis)
    return png_of(figure)


@styled()
def scores_by_prompt(reference: Sequence[float], policy: Sequence[float], unit: str) -> bytes:
    """Plot each prompt's mean judge score under the policy against that under the reference.

    Both lists have the same order of prompts.
    """
    figure, (axis,) = blank_figure(width=5.6, height=3.3)
    ends = [min(*reference, *policy), max(*reference, *policy)]
    axis.plot(ends, ends, color="#999999", linestyle=":", linewidth=1.2, label="no difference")
    axis.scatter(
        reference, policy, s=22, color=POLICY_COLOUR, alpha=0.6, linewidths=0, label="a prompt"
    )
    axis.set_xlabel(f"reference: mean judge score\n({unit})")
    axis.set_ylabel("policy: mean judge score")
    legend_above(axis)
    return png_of(figure)


@styled()
def rewards_by_round(runs: dict[str, Sequence[dict[str, Any]]], unit: str) -> bytes:
    """Plot held-out reward and KL by round, and reward against KL; bars are 95 % intervals.

    Args:
        runs: for each name, the evaluations of a run's policies, with the original model first; a
            single run needs no name.
        unit: the meaning of the reward.
    """
    figure, axes = blank_figure(width=10.0, height=3.2, columns=3)
    looks = ((POLICY_COLOUR, "o-"), (REFERENCE_COLOUR, "s--"), (INK, "^:"))
    for (name, rows), (colour, line) in zip(runs.items(), looks, strict=False):
        kls, rewards = [r["kl_nats_per_completion"] for r in rows], [r["reward"] for r in rows]
        rounds = [float(number) for number in range(len(rows))]
        for axis, places, values in (
            (axes[0], rounds, rewards),
            (axes[1], rounds, kls),
            (axes[2], [k["mean"] for k in kls], rewards),
        ):
            means = [v["mean"] for v in values]
            bars = np.hstack([_bar(v) if v["ci95"] else np.zeros((2, 1)) for v in values])
            axis.errorbar(
                places, means, bars, fmt=line, color=colour, capsize=3, markersize=5, label=name
            )
    for axis, title in zip(axes, ("reward", "KL", "reward against KL"), strict=True):
        axis.set_title(title, loc="left")
        axis.set_xlabel("rounds done")
        _whole_numbers(axis)
    axes[0].set_ylabel(f"held-out reward\n({unit})")
    axes[1].set_ylabel("KL(policy || original)\n(nats per completion)")
    axes[2].set_xlabel("KL (nats per completion)")
    if len(runs) > 1:
        axes[0].legend(loc="best")
    return png_of(figure)


@styled()
def curves_by_round(panels: Sequence[tuple[str, str, Sequence[dict[str, Any] | None]]]) -> bytes:
    """Plot quantities against the number of rounds that were done; bars are 95 % intervals.

    Args:
        panels: for each quantity its title, its unit, and an estimate for each policy, with the
            original model first; None where it has none, and `ci95` None where there is no interval.
    """
    rows = -(-len(panels) // 3)
    figure, axes = blank_figure(10.0, 3.0 * rows, columns=min(3, len(panels)), rows=rows)
    for axis, (title, unit, estimates) in zip(axes, panels, strict=False):
        found = [(float(n), value) for n, value in enumerate(estimates) if value is not None]
        places, values = [n for n, _ in found], [value for _, value in found]
        bars = np.hstack([_bar(v) if v["ci95"] else np.zeros((2, 1)) for v in values])
        means = [value["mean"] for value in values]
        axis.errorbar(places, means, bars, fmt="o-", color=POLICY_COLOUR, capsize=3, markersize=5)
        axis.set_title(title, loc="left")
        axis.set_xlabel("rounds done")
        axis.set_ylabel(unit)
        axis.set_xlim(-0.3, len(estimates) - 0.7)
        _whole_numbers(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return png_of(figure)


@styled()
def scores_against_kl(
    runs: dict[str, tuple[dict[str, Any], dict[str, Any]]], unit: str, comparable: bool
) -> bytes:
    """Plot judge score against KL of several runs; bars are 95 % intervals.

    Args:
        runs: for each label, the estimates of score and KL.
        unit: the meaning of the score.
        comparable: whether all KLs are from one model.
    """
    figure, (axis,) = blank_figure(width=5.6, height=3.6)
    for (label, (score, kl)), look in zip(runs.items(), itertools.cycle(_LOOKS), strict=False):
        colour, _, marker = look
        _mark_score(axis, label, score, kl, colour, marker)
    axis.margins(x=0.12, y=0.18)
    whose = "reference" if comparable else "each run's own reference"
    axis.set_xlabel(f"KL(policy || {whose}) (nats per completion)")
    axis.set_ylabel(f"judge score\n({unit})")
    legend_above(axis)
    return png_of(figure)


@styled()
def differences(pairs: dict[str, dict[str, Any]], unit: str) -> bytes:
    """Plot the difference of judge scores of each pair of runs, with its 95 % interval."""
    figure, (axis,) = blank_figure(width=5.6, height=max(1.8, 0.9 + 0.42 * len(pairs)))
    for place, estimate in enumerate(pairs.values()):
        axis.errorbar(
            [estimate["mean"]], [place], xerr=_bar(estimate), fmt="o", color=INK, capsize=4
        )
    axis.axvline(0, color="#999999", linestyle=":", linewidth=1.2)
    axis.set_yticks(range(len(pairs)), list(pairs))
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlabel(f"difference of judge scores\n({unit})")
    return png_of(figure)


@styled()
def curves_of_runs(runs: dict[str, dict[str, list[Any]]]) -> bytes | None:
    """Plot loss, margins and accuracies of several trainings on shared axes; None without any.

    Args:
        runs: for each label, columns of the metrics by name; a value may be None.
    """
    named = [(key, label) for key, label in _CURVES if any(key in of for of in runs.values())]
    if not named:
        return None
    figure, axes = blank_figure(width=10.0, height=3.2, columns=len(named))
    for axis, (key, title) in zip(axes, named, strict=True):
        for (label, of), look in zip(runs.items(), itertools.cycle(_LOOKS), strict=False):
            if key in of:
                points = [p for p in zip(of["step"], of[key], strict=True) if p[1] is not None]
                colour, line, _ = look
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linestyle=line,
                    linewidth=1.6,
                    label=label,
                )
        axis.set_xlabel("optimizer step")
        axis.set_title(title, loc="left")
        _whole_numbers(axis)
    axes[0].legend(loc="best")
    return png_of(figure)


@styled()
def distributions(runs: Mapping[str, Sequence[float]], what: str, bins: int = 24) -> bytes:
    """Plot the distribution of a quantity over the completions of each run, with means as lines."""
    figure, (axis,) = blank_figure(width=5.6, height=3.6)
    edges = _edges([value for values in runs.values() for value in values], bins)
    for (label, values), look in zip(runs.items(), itertools.cycle(_LOOKS), strict=False):
        colour, line, _ = look
        mean, weights = float(np.mean(values)), np.full(len(values), 100 / len(values))
        shares, _ = np.histogram(values, bins=edges, weights=weights)
        axis.stairs(
            shares,
            edges,
            color=colour,
            linestyle=line,
            linewidth=1.6,
            label=f"{label} (mean {mean:.3g})",
        )
        axis.axvline(mean, color=colour, linestyle=line, linewidth=1.0)
    axis.set_xlabel(what)
    axis.set_ylabel("share of completions (%)")
    legend_above(axis)
    return png_of(figure)


def _two_histograms(
    axis: Axes, reference: Sequence[float], policy: Sequence[float], edges: Any
) -> None:
    both = (
        ("reference", reference, REFERENCE_COLOUR, "", "--"),
        ("policy", policy, POLICY_COLOUR, "///", "-"),
    )
    for name, values, colour, hatch, line in both:
        mean = float(np.mean(values))
        weights = np.full(len(values), 100 / len(values))
        axis.hist(
            values,
            bins=edges,
            weights=weights,
            histtype="stepfilled",
            facecolor=(*_rgb(colour), 0.28),
            edgecolor=colour,
            hatch=hatch,
            linewidth=1.4,
            label=f"{name} (mean {mean:.3g})",
        )
        axis.axvline(mean, color=colour, linestyle=line, linewidth=1.6)
    legend_above(axis)


def _edges(values: Sequence[float], bins: int) -> Any:
    """Return equal bins over all values; if all values are the same, the bins span one unit."""
    low, high = min(values), max(values)
    return np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])


def _mark_score(
    axis: Axes,
    label: str,
    score: dict[str, Any],
    kl: dict[str, Any] | None,
    colour: str,
    marker: str,
) -> None:
    """Mark a model's score at its KL with the bars of both; without a KL it is at 0."""
    axis.errorbar(
        [kl["mean"] if kl else 0.0],
        [score["mean"]],
        xerr=_bar(kl),
        yerr=_bar(score),
        color=colour,
        marker=marker,
        markersize=7,
        capsize=4,
        linestyle="none",
        label=label,
    )


def _bar(estimate: dict[str, Any] | None) -> Any:
    """Return how far the 95 % interval reaches below and above the mean: [2, 1], or None."""
    if estimate is None or estimate["ci95"] is None:
        return None
    low, high = estimate["ci95"]
    # If rounding moves a mean onto its interval's end, the bar must not get a negative length.
    return np.maximum([[estimate["mean"] - low], [high - estimate["mean"]]], 0.0)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _whole_numbers(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
