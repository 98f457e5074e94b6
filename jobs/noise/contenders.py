"""The objectives of the noise study, each told the rate at which labels are flipped.

What comes in: a flip rate. What goes out: configuration sections by name, and rows of results.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydpo import config_objectives as sections

Contender = (
    sections.DpoObjective
    | sections.ConservativeDpoObjective
    | sections.RobustDpoObjective
    | sections.OutlierMixtureObjective
    | sections.IpoObjective
    | sections.HingeObjective
)

FLIP_RATES = (0.0, 0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Result:
    """One objective at one flip rate.

    Attributes:
        setting: `exact` (a world, all labels there can be), `world` (the same, one label for
            each pair) or `model`.
        objective: its name.
        flip_rate: share of training labels that were turned round.
        accuracy: share of pairs that the policy orders as the true rewards do.
        standard_error: of the accuracy, clustered by prompt.
        missing: on worlds, beta log Z - (E[r] - beta KL): what the policy misses of the
            most regularized reward there is; None on the model.
        margin: on the model, mean log-ratio of better against worse completions, nats; None
            on the world.
    """

    setting: str
    objective: str
    flip_rate: float
    accuracy: float
    standard_error: float
    missing: float | None = None
    margin: float | None = None


def contenders(flip_rate: float, beta: float) -> dict[str, Contender]:
    """Sections by name; those that take a rate are told the true one.

    Args:
        flip_rate: the share of labels that are flipped.
        beta: strength of the KL constraint; for IPO it is tau.
    """
    return {
        "dpo": sections.DpoObjective(beta=beta),
        "cdpo": sections.ConservativeDpoObjective(
            name="cdpo", beta=beta, label_smoothing=flip_rate
        ),
        "robust": sections.RobustDpoObjective(name="robust", beta=beta, flip_rate=flip_rate),
        # A label drawn at random is a flipped one half of the time.
        "outlier_mixture": sections.OutlierMixtureObjective(
            name="outlier_mixture", beta=beta, outlier_rate=2 * flip_rate
        ),
        "ipo": sections.IpoObjective(name="ipo", tau=beta),
        "hinge": sections.HingeObjective(name="hinge", beta=beta),
    }
