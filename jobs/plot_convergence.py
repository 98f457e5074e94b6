"""Plot how objectives converge on a world that can be listed.

    python jobs/plot_convergence.py --output docs/convergence.png

What comes in: nothing but options. What goes out: a PNG and a table. On the left the distance
to the optimum that theory gives an objective; on the right how much of the regularized
reward's maximum, beta log Z, the policy still misses, for objectives that should reach it
and for some that should not. Newton steps: they say where an objective leads, not how fast a
model learns by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from raydpo.training import tabular
from raydpo.training.losses import apo, contrastive, dpo, f_divergence, ipo, ranking

BETA = 0.7
FLIP_RATE = 0.2
STEPS = 14
#: What float64 cannot tell from 0.
SMALLEST = 1e-16
MARKERS = "osv^D*Pxh<>"


@dataclass(frozen=True)
class Curve:
    """An objective on the world, and the policy that it should reach.

    Attributes:
        name: as in the plot.
        loss: from logits [X, K] to the expected loss.
        optimum: log-probabilities [X, K], or None where theory gives none.
    """

    name: str
    loss: Callable[[Tensor], Tensor]
    optimum: Tensor | None


def curves(world: tabular.TabularWorld) -> list[Curve]:
    """All objectives with what they should reach."""
    best = tabular.optimal_logps(world, BETA)
    clean = tabular.preference_probabilities(world)
    flipped = tabular.with_flips(clean, FLIP_RATE)

    def pairs(loss: tabular.PairLoss, weights: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda logits: tabular.expected_pair_loss(world, logits, loss, weights)

    def rankings(logits: Tensor) -> Tensor:
        return tabular.expected_ranking_loss(world, logits, plackett_luce)

    def choices(logits: Tensor) -> Tensor:
        return tabular.expected_best_loss(world, logits, best_of_k)

    flips = f"{FLIP_RATE:.0%} flipped"
    return [
        Curve("sigmoid", pairs(sigmoid, clean), best),
        Curve(f"robust, {flips}", pairs(robust, flipped), best),
        Curve(f"outlier mixture, {flips}", pairs(mixture, flipped), best),
        Curve("plackett_luce, K = 4", rankings, best),
        Curve("best_of_k, K = 4", choices, best),
        Curve("ipo", pairs(squared, clean), ipo_optimum(world, clean)),
        Curve("f-DPO, forward KL", pairs(forward_kl, clean), forward_kl_optimum(world)),
        Curve(f"sigmoid, {flips}", pairs(sigmoid, flipped), None),
        Curve("conservative", pairs(conservative, clean), None),
        Curve("exo", pairs(exo, clean), None),
        Curve("apo_zero", pairs(apo_zero, clean), None),
    ]


def sigmoid(chosen: Tensor, rejected: Tensor) -> Tensor:
    """DPO."""
    return dpo.sigmoid_loss(chosen, rejected, beta=BETA)


def robust(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Robust DPO that knows the flip rate."""
    return dpo.robust_loss(chosen, rejected, beta=BETA, flip_rate=FLIP_RATE)


def mixture(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Outlier mixture that knows the flip rate: labels at random are flipped half the time."""
    return dpo.outlier_mixture_loss(chosen, rejected, beta=BETA, outlier_rate=2 * FLIP_RATE)


def conservative(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Conservative DPO."""
    return dpo.conservative_loss(chosen, rejected, beta=BETA, label_smoothing=FLIP_RATE)


def squared(chosen: Tensor, rejected: Tensor) -> Tensor:
    """IPO."""
    return ipo.ipo_loss(chosen, rejected, tau=BETA)


def forward_kl(chosen: Tensor, rejected: Tensor) -> Tensor:
    """F-DPO with the forward KL."""
    return sigmoid(f_divergence.forward_kl_scores(chosen), f_divergence.forward_kl_scores(rejected))


def exo(chosen: Tensor, rejected: Tensor) -> Tensor:
    """EXO on pairs."""
    return contrastive.exo_loss(chosen, rejected, beta=BETA, label_smoothing=0.1)


def apo_zero(chosen: Tensor, rejected: Tensor) -> Tensor:
    """APO-zero."""
    return apo.apo_zero_loss(chosen, rejected, beta=BETA)


def plackett_luce(groups: Tensor, mask: Tensor) -> Tensor:
    """Rankings."""
    return ranking.plackett_luce_loss(groups, mask, beta=BETA)


def best_of_k(groups: Tensor, mask: Tensor) -> Tensor:
    """Best of K."""
    return ranking.best_of_k_loss(groups, mask, beta=BETA)


def ipo_optimum(world: tabular.TabularWorld, preferences: Tensor) -> Tensor:
    """pi_ref exp(P(y beats a uniform other)/tau)/Z, arXiv:2310.12036 sec. 5; P(y, y) = 1/2."""
    wins = preferences + torch.eye(preferences.shape[-1], dtype=preferences.dtype) / 2
    return (world.reference_logps + wins.mean(-1) / BETA).log_softmax(-1)


def forward_kl_optimum(world: tabular.TabularWorld) -> Tensor:
    """The forward KL's own optimum, from f'(u) - f'(1) = 1 - 1/u."""
    return tabular.f_optimal_logps(world, BETA, lambda score: 1 / (1 - score), 1.0)


@dataclass(frozen=True)
class Traced:
    """A curve's numbers after each Newton step.

    Attributes:
        name: of the curve.
        distances: KL(optimum || policy), nats, or None.
        missing: beta log Z - (E[r] - beta KL), the mean over prompts.
    """

    name: str
    distances: list[float] | None
    missing: list[float]


def trace(world: tabular.TabularWorld, curve: Curve) -> Traced:
    """Fit the curve's objective and measure after every step."""
    trajectory = tabular.fit(world, curve.loss, STEPS)
    most = BETA * tabular.log_partition(world, BETA)
    missing = [
        (most - tabular.regularized_reward(world, logps, BETA)).mean().item()
        for logps in trajectory
    ]
    if curve.optimum is None:
        return Traced(curve.name, None, missing)
    return Traced(curve.name, [tabular.kl(curve.optimum, p) for p in trajectory], missing)


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
    traced = [trace(world, curve) for curve in curves(world)]
    print(f"{'objective':32} {'KL(own optimum||pi)':>20} {'beta log Z - value':>20}")
    for one in traced:
        own = "-" if one.distances is None else _size(one.distances[-1])
        print(f"{one.name:32} {own:>20} {_size(one.missing[-1]):>20}")
    draw(traced, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
