"""The objectives of the noise study, each told the true rate, and the results of one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from noise.labels import VOTES, Asked, Noise
from raydpo.config import objectives as sections

Section = (
    sections.DpoObjective
    | sections.ConservativeDpoObjective
    | sections.RobustDpoObjective
    | sections.OutlierMixtureObjective
    | sections.SoftLabelObjective
    | sections.IpoObjective
    | sections.HingeObjective
)

RATES: Final = (0.0, 0.1, 0.2, 0.3, 0.4)
#: Objectives whose loss is that of `dpo` where no label is wrong, on the same pairs.
EQUAL_WITHOUT_NOISE: Final = ("cdpo", "robust", "outlier_mixture", "soft_label")


@dataclass(frozen=True)
class Contender:
    """An objective and the votes that it learns from."""

    section: Section
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class Result:
    """One objective at one rate and one seed.

    Attributes:
        setting: `exact` (a world, all labels there can be), `world` (the same, one label for
            each pair) or `model`.
        objective: its name.
        corruption: `flips`, `outliers`, or `none` at a rate of 0.
        rate: share of training labels that were corrupted.
        seed: of the world, or of samples, split, corruption and order.
        right: of each pair 1 where the policy orders it as the true rewards do, 0 where not,
            one half for a tie. The same pairs for all objectives of a setting and seed.
        prompts: the prompt of each.
        missing: on worlds, by prompt, beta log Z - (E[r] - beta KL): what the policy misses of the
            largest regularized reward there is.
        missing_prompts: the prompt of each.
        scores: on the model, what the judge gives samples of the policy on held-out prompts.
        kl: of each sample, the policy's log-prob less the reference's, nats.
        score_prompts: the prompt of each sample.
    """

    setting: str
    objective: str
    corruption: str
    rate: float
    seed: int
    right: list[float]
    prompts: list[str]
    missing: list[float] = field(default_factory=list[float])
    missing_prompts: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    kl: list[float] = field(default_factory=list[float])
    score_prompts: list[str] = field(default_factory=list[str])


def contenders(noise: Noise, beta: float) -> dict[str, Contender]:
    """Contenders by name; objectives that take a rate are told the true one.

    Args:
        noise: the labels' errors.
        beta: strength of the KL constraint; for IPO it is tau.
    """
    wrong = noise.wrong_share
    soft = sections.SoftLabelObjective(name="soft_label", beta=beta)
    single: dict[str, Section] = {
        "dpo": sections.DpoObjective(beta=beta),
        "cdpo": sections.ConservativeDpoObjective(name="cdpo", beta=beta, label_smoothing=wrong),
        "robust": sections.RobustDpoObjective(name="robust", beta=beta, flip_rate=wrong),
        # A label drawn at random is wrong half of the time.
        "outlier_mixture": sections.OutlierMixtureObjective(
            name="outlier_mixture", beta=beta, outlier_rate=2 * wrong
        ),
        "ipo": sections.IpoObjective(name="ipo", tau=beta),
        "hinge": sections.HingeObjective(name="hinge", beta=beta),
    }
    return {
        **{name: Contender(section) for name, section in single.items()},
        "soft_label": Contender(soft, Asked(VOTES)),
        "soft_label, equal votes": Contender(soft, Asked(VOTES, 1 / VOTES)),
    }


def in_order(results: Iterable[Result]) -> list[str]:
    """Names of the objectives that have results, in the order of the contenders."""
    found = {result.objective for result in results}
    return [name for name in contenders(Noise("flips", 0.0), beta=1.0) if name in found]


def done(results: Sequence[Result], setting: str, noise: Noise, seed: int) -> set[str]:
    """Names of the objectives that have a result."""
    key = (setting, noise.name, noise.rate, seed)
    return {r.objective for r in results if (r.setting, r.corruption, r.rate, r.seed) == key}
