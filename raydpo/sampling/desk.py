"""The desk of an engine pool: which engines answer, whose turn it is, what they made.

Callers all over the cluster get the same answers. The desk is a separate actor that holds no CPU
and restarts whenever it dies; the keeper (`keeper.py`) then tells it again which engines answer.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

from raydpo.core.periodic import periodically
from raydpo.core.progress import logger

_SECONDS_BETWEEN_LOOKS: Final = 5.0


@contextmanager
def telling(desk: Any) -> Generator[None]:
    """Log the desk's notes while the block runs: workers leave them, whose own log nobody reads."""

    def tell() -> None:
        try:
            notes = ray.get(desk.notes.remote(), timeout=_SECONDS_BETWEEN_LOOKS)
        except RayError:
            return  # the desk is gone or slow: whoever works with it says so
        for note in notes:
            logger.warning("%s", note)

    try:
        with periodically("raydpo-desk", tell, _SECONDS_BETWEEN_LOOKS):
            yield
    finally:  # what an engine said last matters most when the block failed
        tell()


@dataclass(frozen=True)
class Seat:
    """An engine at work.

    Attributes:
        number: in the pool.
        start: how often an actor of this number was started before.
        handle: of the actor that is this engine now.
    """

    number: int
    start: int
    handle: Any


class Desk:
    """Actor: deals out the engines that answer in turn, and counts what they made."""

    def __init__(self) -> None:
        self._seats: dict[int, Seat] = {}
        self._end: str | None = None
        self._turns = 0
        self._completions = 0
        self._tokens = 0
        self._reports: dict[str, str] = {}
        self._notes: list[str] = []
        self._last_work = time.monotonic()

    def seat(self, seat: Seat) -> None:
        """Give work to an engine that answers."""
        self._seats[seat.number] = seat

    def leave(self, number: int, start: int) -> None:
        """Give this engine no more work; this does not affect a new engine with its number."""
        seat = self._seats.get(number)
        if seat is not None and seat.start == start:
            del self._seats[number]

    def end(self, why: str) -> None:
        """Record that no engine answers, and that none will."""
        self._end = why

    def turn(self) -> Seat | str | None:
        """The engine whose turn it is; None if one will come, and the reason if none will."""
        seats = self.seats()
        if not seats:
            return self._end
        self._turns += 1
        return seats[(self._turns - 1) % len(seats)]

    def seats(self) -> list[Seat]:
        """The engines that answer, by number."""
        return [self._seats[number] for number in sorted(self._seats)]

    def report(self, fingerprint: str, text: str) -> None:
        """Record how these weights reached the engines."""
        self._reports[fingerprint] = text

    def reported(self, fingerprint: str) -> str | None:
        """Return the record for these weights, once."""
        return self._reports.pop(fingerprint, None)

    def add(self, completions: int, tokens: int) -> None:
        """Count what an engine made."""
        self._completions += completions
        self._tokens += tokens
        self._last_work = time.monotonic()

    def idle_seconds(self) -> float:
        """Seconds since something was last made."""
        return time.monotonic() - self._last_work

    def made(self) -> tuple[int, int]:
        """Completions and tokens so far."""
        return self._completions, self._tokens

    def note(self, text: str) -> None:
        """Leave a line for the driver's log."""
        self._notes.append(text)

    def notes(self) -> list[str]:
        """What was noted since this was last asked."""
        notes, self._notes = self._notes, []
        return notes
