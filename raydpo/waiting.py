"""Waits that speak: what is waited for, who holds it, and what frees it.

What comes in: a block that may wait, and what stands in its way. What goes out: a line in the
log after half a minute without progress, and one each minute after that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from raydpo.errors import said_by
from raydpo.progress import logger

#: A wait says nothing before this.
FIRST_SECONDS: Final = 30.0
#: And after that so often.
EVERY_SECONDS: Final = 60.0
_SECONDS_BETWEEN_LOOKS: Final = 1.0


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of a wait.

    Attributes:
        waits_for: what is missing.
        held_by: who has it, or what is being done meanwhile.
        freed_by: what ends the wait, by itself or by a person.
    """

    waits_for: str
    held_by: str
    freed_by: str

    def line(self, what: str, seconds: float) -> str:
        """What the log says of it after so many seconds."""
        return (
            f"[{what}] waits since {seconds:.0f} s for {self.waits_for}; "
            f"{self.held_by}; what frees it: {self.freed_by}"
        )


class Wait:
    """The time since something last moved, and when to speak of it.

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
        """Something was done: the wait begins anew."""
        self._since = time.monotonic()
        self._next = self._since + FIRST_SECONDS

    def look(self) -> None:
        """Speak, where it is time to."""
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
    wait, ended = Wait(what, describe, tell), threading.Event()

    def look() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            wait.look()

    threading.Thread(target=look, name="raydpo-waiting", daemon=True).start()
    try:
        yield wait
    finally:
        ended.set()
