"""Call a function periodically, in a thread, while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from raydpo.core.errors import said_by
from raydpo.core.progress import logger


@contextmanager
def periodically(
    name: str,
    act: Callable[[], None],
    seconds: float,
    end_within_seconds: float | None = None,
) -> Generator[None]:
    """Call a function in a thread every so many seconds, first after the first of them.

    What it raises goes to the log at the debug level, and it is called again: the work goes on.

    Args:
        name: of the thread.
        act: what is called; it handles by itself whatever people must know of.
        seconds: between the end of a call and the next one.
        end_within_seconds: how long the end of the block waits for a call that still runs;
            without it as long as that takes.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            try:
                act()
            except Exception as error:  # noqa: BLE001 - the next call may succeed
                logger.debug("%s: %s", name, said_by(error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(end_within_seconds)
