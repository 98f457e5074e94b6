"""Compare what training computes with the formulas, and list the functions that a section uses.

From the name of a section (see `sections.py`), it returns the largest error of loss, metrics and
gradients.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from types import FrameType

from mpmath import mp

from raydpo.core.errors import NumericsError
from tests.conformance import batch_formulas
from tests.conformance.batch_formulas import Expected
from tests.conformance.mutants import FAILURES
from tests.conformance.plants import Plant
from tests.conformance.sections import SECTIONS, STEPS, USUAL_STEP
from tests.conformance.training_path import Result, batch_of, trained

#: Relative, and absolute below 1: float32's rounding of sums of a few dozen terms.
TOLERANCE = 2e-6
#: Metrics that say how a step went, not what it computed.
OF_THE_STEP = {
    "grad_norm",
    "learning_rate",
    "epoch",
    "step_seconds",
    "num_tokens",
    "tokens_per_second",
    "groups_per_second",
}


@dataclass(frozen=True)
class Shipped:
    """What a section computes as the package is, and the functions that it called: file and name."""

    result: Result
    called: frozenset[tuple[str, str]]


@cache
def expected(name: str) -> Expected:
    """By the formulas."""
    return batch_formulas.expected(SECTIONS[name], batch_of(SECTIONS[name], step_of(name)))


def step_of(name: str) -> int:
    """The step that a section is looked at in."""
    return STEPS.get(name, USUAL_STEP)


@cache
def shipped(name: str) -> Shipped:
    """By the package."""
    called: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        result = trained(SECTIONS[name], step=step_of(name))
    finally:
        sys.setprofile(None)
    return Shipped(result, frozenset(called))


def largest_error(found: Result, wanted: Expected) -> float:
    """Of loss, metrics and gradients, against their size or 1; infinite for what is no number."""
    assert found.metrics.keys() - OF_THE_STEP == set(wanted.metrics)
    assert (found.request.top_k, found.request.reference_kl) == wanted.request
    pairs = [(found.metrics[name], value) for name, value in wanted.metrics.items()]
    places = found.gradient.keys() | wanted.gradient.keys()
    pairs += [(found.gradient.get(place, 0.0), wanted.gradient.get(place, 0)) for place in places]
    errors = [float(abs(got - mp.mpf(value)) / max(abs(mp.mpf(value)), 1)) for got, value in pairs]
    return max(error if error == error else float("inf") for error in errors)


#: Ways to cut a step, as arguments of `trained`; of the train loop what is wrong shows with two workers.
CUTS: list[dict[str, int]] = [{}, {"workers": 2}, {"tokens": 10**9}]
LOOP_CUTS: list[dict[str, int]] = [{"workers": 2}, {}]


def noticed(plant: Plant) -> bool:
    """Whether any section that goes through the function shows the mistake in it."""
    code = plant.function.__code__
    places = (code.co_filename, code.co_qualname)
    through = [name for name in SECTIONS if places in shipped(name).called]
    assert through, f"nothing calls {plant.module}.{plant.name}"
    with plant.planted():
        cuts = LOOP_CUTS if plant.module == "raydpo.training.loop" else CUTS
        return any(_is_wrong(name, cut) for cut in cuts for name in through)


def _is_wrong(name: str, cut: dict[str, int]) -> bool:
    try:
        found = trained(SECTIONS[name], step=step_of(name), **cut)
        return largest_error(found, expected(name)) >= TOLERANCE
    except (*FAILURES, NumericsError):
        return True
