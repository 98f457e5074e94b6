"""The desk of an engine pool: which engines live, whose turn it is, what they made.

What comes in: calls from all over the cluster. What goes out: the same answer for all of
them. It is an actor of its own, which holds nothing and is started again as often as it dies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray.exceptions import RayError

from raydpo.progress import logger

_SECONDS_BETWEEN_LOOKS: Final = 5.0


@contextmanager
def telling(desk: Any) -> Generator[None]:
    """Log the desk's notes while the block runs: workers leave them, whose own log nobody reads."""
    ended = threading.Event()

    def tell() -> None:
        try:
            notes = ray.get(desk.notes.remote(), timeout=_SECONDS_BETWEEN_LOOKS)
        except RayError:
            return  # the desk is gone or slow: whoever works with it says so
        for note in notes:
            logger.warning("%s", note)

    def look() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            tell()

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:  # an engine's last words are worth most where the block failed
        ended.set()
        tell()


class Desk:
    """Actor: deals out the engines that live in turn, and counts what they made."""

    def __init__(self, engines: int) -> None:
        self._living = list(range(engines))
        self._turns = 0
        self._completions = 0
        self._tokens = 0
        self._reports: dict[str, str] = {}
        self._notes: list[str] = []
        self._last_work = time.monotonic()

    def turn(self) -> int | None:
        """Number of the engine whose turn it is; None where none lives."""
        if not self._living:
            return None
        self._turns += 1
        return self._living[(self._turns - 1) % len(self._living)]

    def living(self) -> list[int]:
        """Numbers of the engines whose work was not left to others."""
        return self._living

    def report(self, fingerprint: str, text: str) -> None:
        """Leave word of how these weights came into the engines."""
        self._reports[fingerprint] = text

    def reported(self, fingerprint: str) -> str | None:
        """The word that was left of these weights, once."""
        return self._reports.pop(fingerprint, None)

    def bury(self, number: int) -> None:
        """Leave an engine's work to the others."""
        if number in self._living:
            self._living.remove(number)

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
