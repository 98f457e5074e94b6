"""Signs of life of processes that work for a stage, and the end of those that give none.

A worker writes a small file again and again while it works. The driver logs who has worked on
what for how long. It ends a process whose file stays unchanged: stopped, or hung so that not even
a thread of it runs. Ray then starts its work again. The files are in the stage's folder, which
every worker and the driver can reach.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import ray

from raydpo.core.errors import DataError, said_by
from raydpo.core.nodes import end_process, process_start
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger
from raydpo.core.storage import Folder

_FOLDER: Final = "_alive"
#: A process shows itself at least so often, and four times within what it may take to answer.
_SECONDS_BETWEEN_BEATS: Final = 10.0


@dataclass(frozen=True)
class Sign:
    """What a process says of itself.

    Attributes:
        node: id of its node.
        process_id: on that node.
        process_start: when it was started, in ticks of that machine: ids are used again.
        beat: counts the signs of one piece of work.
        moves: counts what it has done of it.
        doing: what it does, in words.
    """

    node: str
    process_id: int
    process_start: int
    beat: int
    moves: int
    doing: str

    def __str__(self) -> str:
        return f"process {self.process_id} on node {self.node[:12]} ({self.doing})"


class Beat:
    """The worker's side: what it does, and when it last made progress."""

    def __init__(self, doing: str) -> None:
        self.moves = 0
        self.doing = doing
        self.moved_at = time.monotonic()

    def move(self, doing: str) -> None:
        """Record progress, and what comes next."""
        self.moves += 1
        self.doing = doing
        self.moved_at = time.monotonic()


@contextmanager
def beating(
    stage: Folder,
    name: str,
    doing: str,
    answer_within_seconds: float,
    look: Callable[[Beat], None] | None = None,
) -> Generator[Beat]:
    """Show, while the block runs, that this process lives.

    Args:
        stage: the stage's folder.
        name: of the piece of work; the file's name, so not a path.
        doing: what is done first, in words.
        answer_within_seconds: how long it may show nothing.
        look: called with each beat, in the thread that beats.
    """
    beat, folder, count = Beat(doing), stage.child(_FOLDER), 0
    # Without a connection Ray would start a cluster of its own, open to other machines.
    node = str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
    own = os.getpid(), process_start(os.getpid())

    def show() -> None:
        try:
            folder.write_json(
                f"{name}.json", asdict(Sign(node, *own, count, beat.moves, beat.doing))
            )
        except OSError as error:  # the work matters more than what is said of it
            logger.debug("%s: no sign of life could be written: %s", name, said_by(error))

    def act() -> None:
        nonlocal count
        count += 1
        if look is not None:
            look(beat)
        show()

    show()
    every = beat_seconds(answer_within_seconds)
    try:
        with periodically("raydpo-beat", act, every, end_within_seconds=every):
            yield beat
    finally:
        with suppress(OSError):  # the driver reads all signs at each look
            folder.delete(f"{name}.json")


def beat_seconds(answer_within_seconds: float) -> float:
    """Time between two signs of life."""
    return min(_SECONDS_BETWEEN_BEATS, answer_within_seconds / 4)


@dataclass(frozen=True)
class Watched:
    """Processes to watch.

    Attributes:
        stage: the folder that they write their signs into.
        what: the stage and round, for the log.
        answer_within_seconds: how long one may show nothing.
        setting: the configuration's name of that limit.
        is_done: whether the piece of work of a name is done: then nobody need answer for it.
    """

    stage: Folder
    what: str
    answer_within_seconds: float
    setting: str
    is_done: Callable[[str], bool] = lambda _: False


class Watch:
    """The driver's side: the signs of all watched processes, and how long each has been still."""

    def __init__(self, watched: list[Watched]) -> None:
        self._watched = watched
        self._seen: dict[tuple[int, str], tuple[Sign, float, float]] = {}
        self._ended: set[tuple[str, int, int]] = set()

    def look(self) -> None:
        """Read all signs; end the processes that have given none for too long."""
        now = time.monotonic()
        there: set[tuple[int, str]] = set()
        for number, watched in enumerate(self._watched):
            folder = watched.stage.child(_FOLDER)
            for file in folder.files():
                name = file.removesuffix(".json")
                sign = _sign(folder, file)
                if sign is None or (sign.node, sign.process_id, sign.process_start) in self._ended:
                    continue
                there.add((number, name))
                before = self._seen.get((number, name))
                same = before is not None and _same_work(before[0], sign)
                shown_at = before[1] if before and same and before[0].beat == sign.beat else now
                moved_at = before[2] if before and same and before[0].moves == sign.moves else now
                self._seen[number, name] = sign, shown_at, moved_at
                if now - shown_at > watched.answer_within_seconds and not watched.is_done(name):
                    self._end(watched, name, sign)
        for key in self._seen.keys() - there:
            del self._seen[key]

    def at_work(self) -> list[tuple[str, Sign, float, float]]:
        """Names, signs, and seconds since each last showed itself and last moved; done ones not."""
        now = time.monotonic()
        return [
            (name, sign, now - shown_at, now - moved_at)
            for (number, name), (sign, shown_at, moved_at) in sorted(self._seen.items())
            if not self._watched[number].is_done(name)
        ]

    def words(self) -> str:
        """Which workers are busy, and which of them show no sign of life."""
        lines = [
            f"{name}: {sign}"
            + (f", silent for {silent:.0f} s" if silent > 2 * _SECONDS_BETWEEN_BEATS else "")
            for name, sign, silent, _ in self.at_work()
        ]
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        return "; ".join(lines[:4]) + more if lines else "no process has begun with it"

    def _end(self, watched: Watched, name: str, sign: Sign) -> None:
        self._ended.add((sign.node, sign.process_id, sign.process_start))
        if not end_process(sign.node, sign.process_id, sign.process_start):
            logger.debug("[%s] %s: %s is not there any more", watched.what, name, sign)
            return
        logger.warning(
            "[%s] %s: %s has not answered for %g s (%s): it is ended, and its work done again",
            watched.what,
            name,
            sign,
            watched.answer_within_seconds,
            watched.setting,
        )


@contextmanager
def watching(watched: list[Watched]) -> Generator[Watch]:
    """Watch processes in a thread while the block runs; old signs are forgotten first."""
    watch = Watch(watched)
    every = min(beat_seconds(one.answer_within_seconds) for one in watched)
    for one in watched:
        one.stage.child(_FOLDER).delete()
    try:
        with periodically("raydpo-watch", watch.look, every):
            yield watch
    finally:
        for one in watched:
            one.stage.child(_FOLDER).delete()


def _same_work(one: Sign, other: Sign) -> bool:
    return (one.node, one.process_id, one.process_start) == (
        other.node,
        other.process_id,
        other.process_start,
    )


def _sign(folder: Folder, name: str) -> Sign | None:
    """A sign; None if it is gone or incomplete."""
    try:
        values: Any = folder.read_json(name)
        return Sign(**values)
    except (DataError, OSError, TypeError):
        return None
