"""The log of a run: one logger, and progress with rates and time left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from raydpo.core.credentials import without_credentials

logger = logging.getLogger("raydpo")


def say(line: str) -> None:
    """Log an event that is worth knowing."""
    logger.info("%s", line)


def start_logging(verbose: bool = False) -> None:
    """Send raydpo's log to stderr, a line an event, with the time of day."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutCredentials("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False


class _WithoutCredentials(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))


@dataclass
class Progress:
    """Counts finished work and says, at most every few seconds, how fast it goes.

    Args:
        what: the stage and round, as in "round 0, sampling".
        unit: what is counted, in the plural.
        total: how many there are.
        done: how many were there before this process started.
        every_seconds: shortest time between two lines.
        tell: what is done with a line.
    """

    what: str
    unit: str
    total: int
    done: int = 0
    every_seconds: float = 5.0
    tell: Callable[[str], None] = say
    _before: int = field(init=False, default=0)
    _started: float = field(init=False, default_factory=time.monotonic)
    _said: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before = self.done

    def add(self, count: int, note: str = "") -> None:
        """Count `count` more, and log it when a line is due."""
        if count == 0:
            return
        self.done += count
        now = time.monotonic()
        if self.done >= self.total or now - self._said >= self.every_seconds:
            self._said = now
            self.tell(self.line(now, note))

    def line(self, now: float, note: str = "") -> str:
        """One line: done, total, rate, time left."""
        seconds = max(now - self._started, 1e-9)
        rate = (self.done - self._before) / seconds
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        end = f"{seconds:.0f} s" if self.done >= self.total else f"{_duration(left)} left"
        text = f"[{self.what}] {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {end}"
        return f"{text}, {note}" if note else text


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"
