"""The keeper of an engine pool: it starts, ends and restarts engines.

It gives engines that answer a seat at the pool's desk. It runs in the driver, which outlives all
engines. Ray itself would restart a lost engine wherever there is room, count a lost node as the
engine's own death, and wait silently if there is no room.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, cast

import ray
from ray.exceptions import RayActorError, RayError

from raydpo.config.job import EnginesConfig
from raydpo.core.errors import EngineError, RaydpoError, own_errors, said_by
from raydpo.core.nodes import a_node_has_room, end_process, living_nodes
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger
from raydpo.core.resources import Resources
from raydpo.core.waiting import Obstacle, Wait, holders
from raydpo.sampling.desk import Seat
from raydpo.sampling.engine import Pulse

#: How long an autoscaling cluster may take to find room for the first engines.
PLACE_TIMEOUT_SECONDS: Final = 900.0
#: One step of an engine may take so many times what an answer may.
STEPS_ARE_SLOWER: Final = 10
_SECONDS_BETWEEN_LOOKS: Final = 1.0
#: An engine that is asked each second is silent once it has not answered for so long.
_SILENT_SECONDS: Final = 10.0
#: An engine without a place stands back after this while others work: what it asks for they may need.
_STANDS_BACK_SECONDS: Final = 10.0
#: A node is known to be lost so long after the processes on it.
_NODE_NEWS_SECONDS: Final = 30.0


@dataclass
class _Engine:
    """The state of an engine; without a handle it does not exist.

    Attributes:
        number: in the pool.
        starts: how often it was started.
        deaths: when it died of itself, and on which node.
        lost_node: whether it went with its node, or stood back: it needs room somewhere else.
        given_up: it died too often.
        node: where it is, once it has a place.
        asked: the call that shows whether it answers, since `asked_at`.
        loading: the call that ends when the model is loaded; None afterwards.
        pulse: its last answer.
        stepped_at: when `pulse.steps` last changed, or no step was under way.
    """

    number: int
    wait: Wait
    starts: int = 0
    deaths: tuple[tuple[float, str | None], ...] = ()
    lost_node: bool = False
    given_up: bool = False
    handle: Any = None
    node: str | None = None
    asked: Any = None
    asked_at: float = 0.0
    loading: Any = None
    pulse: Pulse | None = None
    stepped_at: float = 0.0

    @property
    def answers(self) -> bool:
        """Whether it is loaded, and has answered."""
        return self.handle is not None and self.loading is None and self.pulse is not None


@dataclass(frozen=True)
class Keeping:
    """The settings of a keeper.

    Attributes:
        start: starts an actor; its class is `Engine`.
        count: engines that there shall be.
        at_first: so many are started now, the others once there is room for them.
        needs: what each holds.
        settings: `sampling.engines`.
        desk: handle of the pool's desk.
        what: who uses them, for the log.
        may_start: whether other stages still find their places beside so many engines.
    """

    start: Callable[[], Any]
    count: int
    at_first: int
    needs: Resources
    settings: EnginesConfig
    desk: Any
    what: str
    may_start: Callable[[int], bool]


class Keeper:
    """Looks after the engines of a pool; see `kept`."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self._engines = [self._named(number) for number in range(keeping.count)]
        self._why = "no engine was started"
        for engine in self._engines:
            if engine.number < keeping.at_first:
                self._start(engine)
            else:
                engine.lost_node = True

    def wait_until_loaded(self) -> None:
        """Wait until every engine that is there has loaded its model.

        Raises:
            EngineError: the cluster has no room for all, or all of them died.
            ModelError, ConfigError: the model cannot be loaded as asked.
        """
        deadline = time.monotonic() + PLACE_TIMEOUT_SECONDS
        while waiting := [e for e in self._engines if e.loading is not None]:
            _wait([engine.loading for engine in waiting], _SECONDS_BETWEEN_LOOKS)
            self.look(first=True)
            if time.monotonic() > deadline:
                self._do_without_places()
        if all(engine.given_up for engine in self._engines):
            raise died(self._keeping.settings, self._why)

    def _do_without_places(self) -> None:
        """Let go of engines that found no place in all that time; others do their work.

        Raises:
            EngineError: there are no others.
        """
        if all(engine.pulse is None for engine in self._engines):
            raise self._no_place()
        for engine in self._engines:
            if engine.handle is not None and engine.pulse is None:
                self._step_back(engine)

    def look(self, first: bool = False) -> None:
        """Check which engines answer, end those that do not, and start those that may start.

        Raises:
            RaydpoError: `first`, and an engine cannot load the model.
        """
        self._forgive_lost_nodes()
        for engine in self._engines:
            if engine.handle is not None:
                self._check(engine, first)
            elif not engine.given_up and self._may_start(engine):
                self._start(engine)
            engine.wait.look()
        if all(engine.given_up for engine in self._engines):
            self._keeping.desk.end.remote(self._why)

    def end(self) -> None:
        """End all engines."""
        for engine in self._engines:
            self._kill(engine, tell_desk=False)  # the desk ends with them

    def _named(self, number: int) -> _Engine:
        engine = _Engine(number, Wait(self._keeping.what, lambda: self._obstacle(engine)))
        return engine

    def _start(self, engine: _Engine) -> None:
        handle = self._keeping.start()
        engine.handle, engine.starts = handle, engine.starts + 1
        engine.node, engine.pulse = None, None
        engine.loading = handle.ready.remote()
        self._ask(engine)
        engine.wait.moved()

    def _ask(self, engine: _Engine) -> None:
        engine.asked = engine.handle.__ray_call__.remote(_look_at_itself)
        engine.asked_at = time.monotonic()

    def _check(self, engine: _Engine, first: bool) -> None:
        now = time.monotonic()
        limit = self._keeping.settings.answer_within_seconds
        try:
            if _is_done(engine.asked):
                engine.node, pulse = ray.get(engine.asked)
                self._answered(engine, pulse, now)
            elif engine.pulse is None:
                self._stand_back(engine, now)
            elif now - engine.asked_at > limit:
                self._hangs(engine, f"it has not answered for {limit:g} s")
            if engine.loading is not None and _is_done(engine.loading):
                with own_errors():
                    ray.get(engine.loading)
                engine.loading = None
                self._keeping.desk.seat.remote(_seat(engine))
        except RayActorError as error:
            self._gone(engine, error)
        except RaydpoError as error:
            if first:
                raise
            self._gone(engine, error)

    def _answered(self, engine: _Engine, pulse: Pulse, now: float) -> None:
        limit = STEPS_ARE_SLOWER * self._keeping.settings.answer_within_seconds
        before, engine.pulse = engine.pulse, pulse
        if before is None or before.steps != pulse.steps or not pulse.stepping:
            engine.stepped_at = now
        elif now - engine.stepped_at > limit:
            self._hangs(engine, f"one step of it has taken more than {limit:g} s")
            return
        if engine.answers:
            self._keeping.desk.seat.remote(_seat(engine))  # the desk may have been told otherwise
            engine.wait.moved()
        self._ask(engine)

    def _hangs(self, engine: _Engine, why: str) -> None:
        """End a process that does nothing, and repeat its work."""
        node, pulse = engine.node, engine.pulse
        self._gone(engine, f"{why} (sampling.engines.answer_within_seconds), and was ended")
        if node is not None and pulse is not None:
            end_process(node, pulse.process_id)  # where even Ray's own kill goes unheard

    def _gone(self, engine: _Engine, why: Exception | str) -> None:
        """Handle a dead engine: count its death, unless its node was lost; others do its work."""
        node = engine.node
        engine.lost_node = node is not None and node not in living_nodes()
        self._kill(engine)
        said = said_by(why) if isinstance(why, Exception) else why
        if engine.lost_node:
            text = "its node left the cluster: that counts as no death of its own"
        else:
            engine.deaths += ((time.monotonic(), node),)
            most = self._keeping.settings.max_restarts
            engine.given_up = len(engine.deaths) > most
            end = "it is given up" if engine.given_up else "it is started again"
            text = f"death {len(engine.deaths)}, {most} may be (max_restarts): {end}"
        self._why = f"engine {engine.number}: {said}"
        self._say(f"engine {engine.number} is gone, and others do its work ({text}): {said}")

    def _kill(self, engine: _Engine, tell_desk: bool = True) -> None:
        """End its process, and free its place."""
        if engine.handle is None:
            return
        if tell_desk:
            self._keeping.desk.leave.remote(engine.number, engine.starts)
        with contextlib.suppress(RayError):
            cast(Any, ray).kill(engine.handle, no_restart=True)
        engine.handle = engine.loading = engine.asked = None

    def _forgive_lost_nodes(self) -> None:
        """Take deaths back that a lost node caused: its processes are often seen to die first."""
        since = time.monotonic() - _NODE_NEWS_SECONDS
        recent = {node for e in self._engines for at, node in e.deaths if at > since and node}
        if not recent or not (lost := recent - living_nodes()):
            return
        for engine in self._engines:
            deaths = tuple(death for death in engine.deaths if death[1] not in lost)
            if deaths != engine.deaths:
                engine.deaths, engine.given_up = deaths, False
                engine.lost_node = engine.handle is None
                self._say(f"engine {engine.number} went with its node: no death of its own")

    def _may_start(self, engine: _Engine) -> bool:
        """Return whether there is room for a missing engine without taking another's."""
        others = [e for e in self._engines if e is not engine and e.handle is not None]
        if not others or not engine.lost_node:
            return True
        keeping = self._keeping
        return a_node_has_room(keeping.needs) and keeping.may_start(len(others) + 1)

    def _stand_back(self, engine: _Engine, now: float) -> None:
        """Release a request for a missing place, since Ray would take it from others later."""
        others = any(e.answers for e in self._engines if e is not engine)
        if others and engine.starts > 1 and now - engine.asked_at > _STANDS_BACK_SECONDS:
            self._step_back(engine)

    def _step_back(self, engine: _Engine) -> None:
        self._kill(engine)
        engine.lost_node = True
        self._say(f"engine {engine.number} finds no place, and waits until there is room")

    def _obstacle(self, engine: _Engine) -> Obstacle | None:
        name, most = f"engine {engine.number}", self._keeping.settings.answer_within_seconds
        silent = time.monotonic() - engine.asked_at > min(_SILENT_SECONDS, most / 4)
        if engine.given_up or engine.handle is None or (engine.answers and not silent):
            return None  # where it is not there, others work
        if engine.pulse is None:
            return Obstacle(
                f"{name} ({self._keeping.needs}) to start",
                holders(),
                "its start; where it finds no room, others that end, another node, or a lower "
                "sampling.engines.count or cpus",
            )
        process = f"process {engine.pulse.process_id} on node {(engine.node or '')[:12]}"
        if not silent:
            return Obstacle(f"{name} to load the model", f"{process} does it", "it ends by itself")
        limit = f"{most:g} s (sampling.engines.answer_within_seconds)"
        return Obstacle(
            f"an answer of {name}",
            f"{process} hangs or is stopped, or its node does not answer",
            f"it is ended after {limit}, and its work done again",
        )

    def _no_place(self) -> EngineError:
        keeping = self._keeping
        waiting = sum(e.handle is not None and e.pulse is None for e in self._engines)
        return EngineError(
            f"{waiting} of {keeping.count} engine(s) of {keeping.needs} each found no place in "
            f"{PLACE_TIMEOUT_SECONDS:.0f} s: {holders()}",
            "the cluster has room for all of them",
            "lower sampling.engines.count or cpus, or give the cluster more nodes",
        )

    def _say(self, text: str) -> None:
        logger.warning("[%s] %s", self._keeping.what, text)


@contextlib.contextmanager
def kept(keeping: Keeping) -> Generator[None]:
    """Start the engines, wait until they are loaded, look after them, and end them with the block.

    Raises:
        EngineError, ModelError, ConfigError: see `Keeper.wait_until_loaded`.
    """
    keeper = Keeper(keeping)
    try:
        keeper.wait_until_loaded()
        with periodically("raydpo-keeper", keeper.look, _SECONDS_BETWEEN_LOOKS):
            yield
    finally:
        keeper.end()


def died(settings: EnginesConfig, why: str) -> EngineError:
    """The error when no engine is left."""
    return EngineError(
        f"every engine died, and may be started again {settings.max_restarts} time(s) "
        f"(sampling.engines.max_restarts): {why}",
        "one engine of a pool lives at least",
        "the engine's own log says why: run with --verbose, or read it in Ray's log folder; "
        "often memory is short: lower sampling.engines.cpu_kv_cache_gib, "
        "gpu_memory_fraction, max_batch_sequences or max_sequence_tokens",
    )


def _look_at_itself(engine: Any) -> tuple[str, Pulse]:
    """Runs in the engine's actor: the node that it is on, and its pulse."""
    return ray.get_runtime_context().get_node_id(), engine.pulse()


def _seat(engine: _Engine) -> Seat:
    return Seat(engine.number, engine.starts, engine.handle)


def _is_done(call: Any) -> bool:
    return call is not None and _wait([call], 0)


def _wait(calls: list[Any], seconds: float) -> bool:
    """Wait for the calls' results for a limited time; return whether all have come."""
    count = len(calls)
    waits = cast(Any, ray).wait
    return len(waits(calls, num_returns=count, timeout=seconds, fetch_local=False)[0]) == count
