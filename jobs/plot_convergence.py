"""Plot how objectives converge on an enumerable world.

    python jobs/plot_convergence.py --output docs/convergence.png

It draws a PNG and prints a table. On the left is the distance to the optimum that theory gives an
objective. On the right is how much of the regularized reward's maximum, beta log Z, the policy
still misses, for objectives that should reach it and for some that should not. Newton steps show
where an objective leads, not how fast a model learns by it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from enumerable import world as tabular
from enumerable.optima import TabularObjective, tabular_objectives

BETA = 0.7
FLIP_RATE = 0.2
STEPS = 14
#: What float64 cannot tell from 0.
SMALLEST = 1e-16
MARKERS = "osv^D*Pxh<>+1d2"


@dataclass(frozen=True)
class Traced:
    """A curve's numbers after each Newton step.

    Attributes:
        name: of the objective.
        distances: KL(optimum || policy), nats, or None.
        missing: beta log Z - (E[r] - beta KL), the mean over prompts.
    """

    name: str
    distances: list[float] | None
    missing: list[float]


def trace(world: tabular.TabularWorld, objective: TabularObjective) -> Traced:
    """Fit the objective and measure after every step."""
    trajectory = tabular.fit(world, objective.loss, STEPS)
    most = BETA * tabular.log_partition(world, BETA)
    missing = [
        (most - tabular.regularized_reward(world, logps, BETA)).mean().item()
        for logps in trajectory
    ]
    if objective.optimum is None:
        return Traced(objective.name, None, missing)
    return Traced(objective.name, [tabular.kl(objective.optimum, p) for p in trajectory], missing)


def draw(traced: list[Traced], path: Path) -> None:
    """Both panels, as a PNG."""
    figure = Figure(figsize=(11, 5.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for marker, one in zip(MARKERS, traced, strict=True):
        colour = f"C{MARKERS.index(marker) % 10}"
        if one.distances is not None:
            _line(left, one.distances, one.name, marker, colour)
        _line(right, one.missing, one.name, marker, colour)
    left.axhline(1e-4, color="#999999", linestyle=":")
    left.set_title("distance to the objective's own optimum")
    left.set_ylabel("KL(optimum || policy), nats")
    right.set_title("what is missing from the most regularized reward")
    right.set_ylabel("beta log Z - (E[r] - beta KL)")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_xlabel("Newton step")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def _line(axes: Axes, values: list[float], name: str, marker: str, colour: str) -> None:
    shown = [max(value, SMALLEST) for value in values]
    axes.plot(shown, label=name, marker=marker, color=colour, markersize=4, linewidth=1)


def _size(value: float) -> str:
    return f"{value:.1e}" if value > 1e-15 else "under 1e-15"


def main() -> None:
    """Read the options, fit, print the table, draw."""
    parser = argparse.ArgumentParser(
        description="Plot how objectives converge on a world that can be listed."
    )
    parser.add_argument("--output", type=Path, default=Path("convergence.png"), help="PNG to write")
    parser.add_argument("--seed", type=int, default=11, help="of rewards and reference")
    options = parser.parse_args()
    world = tabular.random_world(prompts=3, completions=4, seed=options.seed, reward_scale=1.0)
    traced = [trace(world, one) for one in tabular_objectives(world, BETA, FLIP_RATE)]
    print(f"{'objective':32} {'KL(own optimum||pi)':>20} {'beta log Z - value':>20}")
    for one in traced:
        own = "-" if one.distances is None else _size(one.distances[-1])
        print(f"{one.name:32} {own:>20} {_size(one.missing[-1]):>20}")
    draw(traced, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
