"""Waits report after half a minute and then once a minute."""

from __future__ import annotations

import pytest

from raydpo.core import waiting
from raydpo.core.waiting import Obstacle, Wait

ENGINE = Obstacle("an engine", "held by others", "their end")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def lines_of(wait: Wait, clock: Clock, seconds: int, told: list[str]) -> list[str]:
    """What a wait says, looked at each second."""
    told.clear()
    for _ in range(seconds):
        clock.now += 1
        wait.look()
    return list(told)


def test_a_wait_speaks_after_half_a_minute_and_then_each_minute(clock: Clock) -> None:
    told: list[str] = []
    wait = Wait("round 0", lambda: ENGINE, told.append)
    assert lines_of(wait, clock, 29, told) == []
    lines = lines_of(wait, clock, 150, told)
    assert [line.split(" s for ")[0] for line in lines] == [
        f"[round 0] waits since {seconds}" for seconds in (30, 90, 150)
    ]
    assert lines[0].endswith(" s for an engine; held by others; what frees it: their end")


def test_what_moves_is_not_spoken_of(clock: Clock) -> None:
    told: list[str] = []
    wait = Wait("round 0", lambda: ENGINE, told.append)
    for _ in range(10):
        assert lines_of(wait, clock, 29, told) == []
        wait.moved()


def test_nothing_in_the_way_is_no_wait(clock: Clock) -> None:
    told: list[str] = []
    wait = Wait("round 0", lambda: None, told.append)
    assert lines_of(wait, clock, 300, told) == []


def test_a_reason_that_cannot_be_told_ends_no_wait(clock: Clock) -> None:
    told: list[str] = []

    def describe() -> Obstacle:
        raise ConnectionError("the cluster is gone")

    wait = Wait("round 0", describe, told.append)
    assert lines_of(wait, clock, 100, told) == []
