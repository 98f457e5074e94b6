"""Which measurement is best, and when training stops."""

from __future__ import annotations

import pytest

from raydpo.config.job import EarlyStoppingConfig
from raydpo.training.stopping import Best, before_training, best_of


def stopping(**values: object) -> EarlyStoppingConfig:
    return EarlyStoppingConfig.model_validate(values)


def seen(values: list[float], settings: EarlyStoppingConfig) -> tuple[int, int | None]:
    """The best step, and the step after which training stops; the first value is that before it."""
    best = before_training(values[0], settings)
    for step, value in enumerate(values[1:], 1):
        best = best.after(step, value, settings)
        if best.stops(settings):
            return best.step, step
    return best.step, None


@pytest.mark.parametrize(
    ("values", "settings", "best", "stops"),
    [
        ([5, 4, 3, 2, 1], {}, 4, None),
        ([5, 4, 3, 3, 3, 3, 0], {}, 2, 5),
        ([5, 6, 7, 8, 1], {}, 1, 3),
        ([5, 4, 4.5, 3, 3.5, 3.4, 3.3], {}, 3, 6),
        ([5, 4, 6], {"patience": 1}, 1, 2),
        ([5, 4, 6, 6, 6, 6, 6], {"patience": None}, 1, None),
        ([0, 1, 2, 2, 1, 0], {"metric": "rewards/margins"}, 2, 5),
        ([0, 0, 0, 0], {"metric": "rewards/accuracies"}, 1, 3),
    ],
)
def test_the_first_of_the_best_steps_counts_and_patience_ends_the_training(
    values: list[float], settings: dict[str, object], best: int, stops: int | None
) -> None:
    assert seen(values, stopping(**settings)) == (best, stops)


def test_small_gains_add_up_until_they_count() -> None:
    """Three steps of 0.4 are more than 1, and stand for one improvement; 0.1 more are none."""
    settings = stopping(min_delta=1.0, patience=3)
    assert seen([5, 4.6, 4.2, 3.8, 3.7, 3.6, 3.5], settings) == (6, 6)


def test_what_was_seen_survives_a_checkpoint() -> None:
    best = Best(7, 0.1, 0.30000000000000004, 2)
    assert best_of(best.as_tensor()) == best
