"""Waits that report what they wait for, who holds it, and what frees it.

A block that waits logs a line after half a minute without progress, and then one each minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray

from raydpo.core.errors import said_by
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger

#: A wait says nothing before this.
FIRST_SECONDS: Final = 30.0
#: And after that so often.
EVERY_SECONDS: Final = 60.0
_SECONDS_BETWEEN_LOOKS: Final = 1.0
#: A look may ask Ray, which may not answer: it is left to itself after so long.
_END_WITHIN_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of a wait.

    Attributes:
        waits_for: what is missing.
        held_by: who has it, or what is being done meanwhile.
        freed_by: what ends the wait, by itself or by a person.
        seconds: since when, where that is known better than by the wait itself.
    """

    waits_for: str
    held_by: str
    freed_by: str
    seconds: float | None = None

    def line(self, what: str, seconds: float) -> str:
        """What the log says of it after so many seconds."""
        since = seconds if self.seconds is None else self.seconds
        return (
            f"[{what}] waits since {since:.0f} s for {self.waits_for}; "
            f"{self.held_by}; what frees it: {self.freed_by}"
        )


class Wait:
    """The time since the last progress, and when to log it.

    Args:
        what: the stage and round, for the log.
        describe: what stands in the way now; None where nothing is waited for. It may ask Ray.
        tell: what is done with a line.
    """

    def __init__(
        self,
        what: str,
        describe: Callable[[], Obstacle | None],
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self._what = what
        self._describe = describe
        self._tell = tell
        self.moved()

    def moved(self) -> None:
        """Restart the wait after progress."""
        self._since = time.monotonic()
        self._next = self._since + FIRST_SECONDS

    def look(self) -> None:
        """Log a line, if one is due."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        try:
            obstacle = self._describe()
        except Exception as error:  # noqa: BLE001 - the wait goes on, whatever hides its reason
            logger.debug("[%s] waits, and cannot say for what: %s", self._what, said_by(error))
            return
        if obstacle is None:
            self.moved()
        else:
            self._tell(obstacle.line(self._what, now - self._since))


@contextmanager
def waiting(
    what: str,
    describe: Callable[[], Obstacle | None],
    tell: Callable[[str], None] = logger.warning,
) -> Generator[Wait]:
    """Say in a thread, while the block runs, what it waits for; see `Wait`."""
    wait = Wait(what, describe, tell)
    with periodically("raydpo-waiting", wait.look, _SECONDS_BETWEEN_LOOKS, _END_WITHIN_SECONDS):
        yield wait


#: What this process holds of the cluster for longer than a task, in words.
_holding: dict[object, str] = {}


@contextmanager
def holding(words: str) -> Generator[None]:
    """Name this in lines about waits, while the block runs, as a holder of CPUs and GPUs."""
    key = object()
    _holding[key] = words
    try:
        yield
    finally:
        del _holding[key]


def holders(but: str = "") -> str:
    """What of the cluster's CPUs and GPUs is free, and who holds the rest.

    Args:
        but: words of one holder that is left out, since it is what waits.
    """
    total: Any = ray.cluster_resources()
    free: Any = ray.available_resources()
    size = " and ".join(
        f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")
    )
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    held = ", ".join(words for words in list(_holding.values()) if words != but)
    return f"{size} are free on {nodes} node(s); held by {held or 'other work on the cluster'}"
