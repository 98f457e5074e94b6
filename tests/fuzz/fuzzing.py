"""Feed malformed inputs to one target after another; this module defines the allowed outcomes.

Success and a raydpo error with its three lines are allowed. Every other exception is a fault. In
the fast suite a target sees some dozens of inputs, the same each time. With RAYDPO_FUZZ_MINUTES
each sees new ones for that long (`make fuzz`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

from raydpo.core.errors import RaydpoError

T = TypeVar("T")

#: For each target; 0 in the fast suite.
SECONDS: Final = 60 * float(os.environ.get("RAYDPO_FUZZ_MINUTES") or 0)

Fuzz = Callable[..., None]


def allowed(call: Callable[..., T], *arguments: Any) -> T | None:
    """The result, or None after an error that says value, rule and way out."""
    try:
        return call(*arguments)
    except RaydpoError as error:
        refusal = error
    assert all(isinstance(part, str) and part.strip() for part in refusal.args), refusal.args
    str(refusal).encode()
    return None


@pytest.fixture
def fuzz(record_property: Callable[[str, object], None]) -> Fuzz:
    """Runs a target on inputs: few and the same, or new ones until the time is over."""

    def run(target: Callable[[Any], None], inputs: SearchStrategy[Any], examples: int) -> None:
        seen = 0
        options = settings(
            max_examples=examples if not SECONDS else max(examples, 200),
            deadline=None,
            derandomize=not SECONDS,
            database=None,
            suppress_health_check=list(HealthCheck),
        )

        def count(value: Any) -> None:
            nonlocal seen
            seen += 1
            target(value)

        ends = time.monotonic() + SECONDS
        while True:
            # A function of its own each time: hypothesis decorates a function once only.
            once = options(given(inputs)(lambda value: count(value)))
            (seed(time.monotonic_ns())(once) if SECONDS else once)()
            if time.monotonic() >= ends:
                break
        record_property("inputs", seen)

    return run
