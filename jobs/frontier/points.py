"""The methods of the frontier study and their strengths.

The strength is beta (for IPO tau) where a method has one, and the learning rate where it has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grid.points import BASE, BEST_OF_JOB, ONE_WORKER, REFERENCE, Point, offline

#: Methods that scale log-ratios by beta, with the options beside it, and the strengths by level.
_OF_BETA: Final = {
    "dpo": ({"name": "dpo"}, (1.0, 0.03), (0.3, 0.01)),
    "plackett_luce": ({"name": "plackett_luce"}, (0.1,), (0.03, 0.5)),
    "best_of_k": ({"name": "best_of_k"}, (0.1,), (0.03, 0.5)),
    "f_dpo": ({"name": "f_dpo", "divergence": "forward_kl"}, (0.1,), (0.03, 0.5)),
}
#: Methods without a KL constraint, with their learning rates by level.
_OF_LEARNING_RATE: Final = {
    "pairwise_cringe": ({"name": "pairwise_cringe"}, ("2e-4",), ("5e-5", "5e-4")),
    "binary_cringe": ({"name": "binary_cringe"}, ("2e-4",), ("5e-5", "5e-4")),
    "preferred_sft": ({"name": "preferred_sft"}, ("2e-4",), ("5e-4",)),
    "unlikelihood": ({"name": "unlikelihood"}, ("2e-5",), ("1e-4", "2e-4")),
}
_TAUS: Final = ((0.1,), (0.03, 0.5))
#: Best-of-N, chosen by the reward that makes the labels.
_NS: Final = (2, 4, 16, 64)


def points() -> list[Point]:
    """Return all points, level 1 before level 2; pi_ref and DPO at beta 0.1 are the first."""
    found = [*_best_of(), *_offline(), *_online()]
    return [REFERENCE, BASE, *sorted(found, key=lambda point: point.level)]


def _best_of() -> Iterator[Point]:
    for n in _NS:
        yield Point("best_of_n", f"N = {n}", job=BEST_OF_JOB, best_of=n)


def _offline() -> Iterator[Point]:
    for level in (1, 2):
        for method, (objective, *betas) in _OF_BETA.items():
            for beta in betas[level - 1]:
                yield offline(method, f"beta {beta:g}", {**objective, "beta": beta}, level=level)
        for tau in _TAUS[level - 1]:
            yield offline("ipo", f"tau {tau:g}", {"name": "ipo", "tau": tau}, level=level)
        for method, (objective, *rates) in _OF_LEARNING_RATE.items():
            for rate in rates[level - 1]:
                override = f"training.learning_rate={float(rate)}"
                yield offline(method, f"lr {rate}", dict(objective), override, level=level)


def _online() -> Iterator[Point]:
    """Yield jobs with rounds: each round is a point of its own."""
    yield Point("online_dpo", "beta 0.1", ONE_WORKER, job="jobs/online_dpo.yaml")
    for level, beta in ((1, 0.3), (2, 0.1)):
        override = f"training.objective.beta={beta}"
        yield Point(
            "policy_gradient",
            f"beta {beta:g}",
            (override,),
            job="jobs/online_policy_gradient.yaml",
            level=level,
        )
    yield Point(
        "policy_gradient, learned reward",
        "beta 0.3",
        ("training.objective.beta=0.3",),
        job="jobs/online_learned_reward.yaml",
        learned_reward=True,
    )
