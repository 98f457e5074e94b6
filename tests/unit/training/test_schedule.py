"""The learning rate over the steps."""

import pytest

from raydpo.training.optimizer import learning_rate


def rates(schedule: str, total: int = 100, warmup: float = 0.1) -> list[float]:
    return [learning_rate(step, total, 2.0, schedule, warmup) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_to_the_peak_in_its_share_of_the_steps(schedule: str) -> None:
    values = rates(schedule)
    assert values[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert max(values) == pytest.approx(2.0)
    assert all(value > 0 for value in values)


def test_schedules_fall_as_they_are_called() -> None:
    assert set(rates("constant")[10:]) == {2.0}
    linear, cosine = rates("linear"), rates("cosine")
    assert linear[55] == pytest.approx(1.0)
    assert cosine[55] == pytest.approx(1.0)
    assert linear[99] == pytest.approx(2.0 / 90)
    assert cosine[99] < linear[99]


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates("linear", warmup=0.0)[0] == 2.0
