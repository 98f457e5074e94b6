"""Call a user's own functions when a training step, a stage or a round has ended.

The driver calls the job's `callbacks` one at a time, in the order of the list. Workers never import
them, and no stage's key contains them.
"""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from raydpo.core.errors import ConfigError, RunError
from raydpo.core.events import Event, Kind
from raydpo.core.own_functions import import_function, raised, search_path, taken_names
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger
from raydpo.core.storage import Folder

OWED: Final = (
    "a callback is `def on_event(event)`: `event` is a `raydpo.Event`; what it returns is not used"
)
_WHAT: Final = "callback"
#: Kinds of events that happen while a training goes on.
_IN_TRAINING: Final = ("step", "heldout")
#: While a callback runs, the log says so this often.
SECONDS_BETWEEN_WARNINGS: Final = 30.0


@dataclass
class _RunCallbacks:
    """The callbacks of a run, and the error of the first one that failed."""

    run: Folder
    functions: list[tuple[str, Callable[..., Any]]]
    failed: RunError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


#: The callbacks of each run that this process drives.
_active: list[_RunCallbacks] = []


def load_callback(path: str, search: Iterable[str] = ()) -> Callable[..., Any]:
    """Import a callback; `search` adds folders for its module.

    Raises:
        ConfigError: there is no such function, it takes anything other than an event, or calling it
            would run none of its lines.
    """
    found = import_function(path, _WHAT, OWED, search)
    if not taken_names(found, path, _WHAT, OWED, ("event",)):
        raise ConfigError(
            f"{_WHAT} {path!r}{inspect.signature(found)} takes no parameter `event`",
            OWED,
            "add the parameter",
        )
    if inspect.isgeneratorfunction(found):
        raise ConfigError(
            f"{_WHAT} {path!r} has a `yield`",
            f"raydpo calls it and takes nothing from it; {OWED}",
            "write it without `yield`",
        )
    return found


@contextmanager
def callbacks_of(run: Folder, paths: Iterable[str]) -> Generator[None]:
    """Have `notify` call the functions of these paths for a run while the block runs.

    Raises:
        ConfigError: one cannot be imported.
        RunError: one raised.
    """
    callbacks = _RunCallbacks(run, [(path, load_callback(path, search_path())) for path in paths])
    _active.append(callbacks)
    try:
        yield
    finally:
        _active.remove(callbacks)
    if callbacks.failed is not None:
        raise callbacks.failed


def has_callbacks(folder: Folder) -> bool:
    """Return whether `notify` would call anything for this folder."""
    return any(callbacks.functions for callbacks in _active_in(folder))


def notify(kind: Kind, folder: Folder, metrics: dict[str, Any], step: int | None = None) -> None:
    """Call the callbacks of the run that contains `folder`, until one of them has failed.

    A failure at a step is logged at once and raised when the stage ends: a callback only observes a
    training, so it does not stop one halfway.

    Args:
        kind: what ended.
        folder: the folder of what ended.
        metrics: its numbers; each callback gets its own copy.
        step: the step, counted from 1, if a step ended or was measured after; 0 before the first.

    Raises:
        RunError: a callback raised.
    """
    for callbacks in _active_in(folder):
        inside = folder.uri.removeprefix(callbacks.run.uri).strip("/")
        event = Event(kind, callbacks.run.uri, inside, step, metrics)
        with callbacks.lock:
            if callbacks.failed is None:
                callbacks.failed = _first_failure(callbacks.functions, event)
                if callbacks.failed is not None and kind in _IN_TRAINING:
                    logger.error("%s", callbacks.failed)
            if callbacks.failed is not None and kind not in _IN_TRAINING:
                raise callbacks.failed


def _active_in(folder: Folder) -> list[_RunCallbacks]:
    return [one for one in _active if f"{folder.uri}/".startswith(f"{one.run.uri}/")]


def _first_failure(
    functions: list[tuple[str, Callable[..., Any]]], event: Event
) -> RunError | None:
    for path, function in functions:
        own_copy = replace(event, metrics=copy.deepcopy(event.metrics))
        if (failed := _call(path, function, own_copy)) is not None:
            return failed
    return None


def _call(path: str, function: Callable[..., Any], event: Event) -> RunError | None:
    ended = event.kind if event.step is None else f"step {event.step} of"
    what, began = f"{_WHAT} {path!r}, at the end of {ended} {event.folder}", time.monotonic()

    def warn() -> None:
        seconds = time.monotonic() - began
        logger.warning("the run waits for %s: it has not returned in %.0f s", what, seconds)

    try:
        with periodically("raydpo-callback", warn, SECONDS_BETWEEN_WARNINGS):
            function(event=event)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the error names the callback
        failed = RunError(
            f"{what}, failed: {raised(error)}",
            "a callback returns; one that raises stops the run, at a step once the training is done",
            "correct the function, catch the error in it, or take it out of `callbacks`; the same "
            "command goes on after the last finished stage",
        )
        failed.__cause__ = error
        return failed
    return None
