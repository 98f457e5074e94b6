"""The pool of engine actors: started once, and used by as many stages as its block holds.

From the model and the number and kind of engines, the module makes a picklable `EnginePool`. Its
engines answer calls from anywhere in the cluster, with the weights that the call names. The
keeper (`keeper.py`) ends and restarts an engine that dies or hangs. Then that engine or another
repeats the open calls; seeds make the second answer equal to the first. An engine that dies too
often leaves its work to the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import ray
from ray.exceptions import RayActorError

from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.core.cluster import uses_cuda
from raydpo.core.errors import own_errors
from raydpo.core.nodes import here, places_for
from raydpo.core.progress import logger
from raydpo.core.resources import Resources
from raydpo.core.waiting import Obstacle, holding, waiting
from raydpo.sampling.arguments import engine_arguments, engine_environment
from raydpo.sampling.desk import Desk, Seat, telling
from raydpo.sampling.engine import Answers, Engine, Request
from raydpo.sampling.keeper import Keeping, died, kept
from raydpo.sampling.weights import Weights

#: Calls that one engine answers at once; more than its workers ever make.
_CALLS_AT_ONCE: Final = 16
#: How often it is asked whether an engine has come.
_SECONDS_BETWEEN_TURNS: Final = 0.5


@dataclass(frozen=True)
class EnginePool:
    """A handle of running engines: the desk that assigns them, and the settings they started with.

    Attributes:
        count: engines that there shall be.
        desk: actor handle.
        settings: how the engines were asked for.
        dtype: of their weights and activations.
        max_sequence_tokens: longest sequence that they make room for.
    """

    count: int
    desk: Any
    settings: EnginesConfig
    dtype: str
    max_sequence_tokens: int

    def take(self) -> Seat:
        """The engine whose turn it is: each that answers is taken equally often. Waits for one.

        Raises:
            EngineError: all of them died more often than `sampling.engines.max_restarts`.
        """
        while True:
            seat = cast("Seat | str | None", ray.get(self.desk.turn.remote()))
            if isinstance(seat, Seat):
                return seat
            if seat is not None:
                raise died(self.settings, seat)
            time.sleep(_SECONDS_BETWEEN_TURNS)  # the keeper says what it waits for

    def generate(
        self, seat: Seat, requests: list[Request], sampling: SamplingConfig, weights: Weights
    ) -> tuple[Seat, Answers]:
        """Let an engine complete the prompts, and wait; another does it where that one is dead.

        Returns the engine that answered, and its answers.

        Raises:
            EngineError: all of them died more often than `sampling.engines.max_restarts`.
        """
        while True:
            try:
                return seat, _result(seat.handle.generate.remote(requests, sampling, weights))
            except RayActorError:
                self._leave(seat)
                seat = self.take()

    def push(self, weights: Weights, what: str) -> float:
        """Bring every engine to the weights, in place, and say so; the seconds it took.

        Engines that hold them already do nothing. A call for other weights brings its
        engine to them by itself; this does it for all engines at once, before any work waits.

        Raises:
            ModelError, EngineError: an engine cannot hold these weights.
        """
        started = time.monotonic()
        loading = self._each(lambda engine: engine.hold.remote(weights), what, "take weights")
        seconds = time.monotonic() - started
        report = cast("str | None", ray.get(self.desk.reported.remote(weights.fingerprint)))
        if report is not None:
            logger.info("[%s] weights %s: %s", what, weights.fingerprint[:12], report)
        if any(loading):
            text = "[%s] weights %s pushed into the engines in %.3f s, of which loading %.3f s"
            logger.info(text, what, weights.fingerprint[:12], seconds, max(loading))
        return seconds

    def score(
        self, sequences: list[tuple[list[int], list[int]]], weights: Weights
    ) -> list[list[list[float]]]:
        """Log-probs, in nats, that each engine that answers gives to completions; see `Engine.score`.

        Raises:
            ModelError, EngineError: an engine cannot hold these weights, or take a sequence.
        """
        return self._each(
            lambda engine: engine.score.remote(sequences, weights), "engines", "score"
        )

    def rest(self) -> None:
        """Let every engine sleep until its next call, where `sampling.engines.sleep` says so."""
        if not self.settings.sleep:
            return
        started = time.monotonic()
        self._each(lambda engine: engine.sleep.remote(), "engines", "fall asleep")
        logger.info("[engines] asleep after %.2f s", time.monotonic() - started)

    def seats(self) -> list[Seat]:
        """The engines that answer, by number."""
        return cast("list[Seat]", ray.get(self.desk.seats.remote()))

    def report(self, fingerprint: str, text: str) -> None:
        """Record that weights reached the engines by another way; the next `push` logs it."""
        ray.get(self.desk.report.remote(fingerprint, text))

    def count_made(self, completions: int, tokens: int) -> None:
        """Add to what the pool has made, without waiting."""
        self.desk.add.remote(completions, tokens)

    def made(self) -> tuple[int, int]:
        """Completions and tokens that the pool has made so far."""
        return cast("tuple[int, int]", ray.get(self.desk.made.remote()))

    def idle_seconds(self) -> float:
        """Time since the pool last made something."""
        return cast(float, ray.get(self.desk.idle_seconds.remote()))

    def _each(self, call: Callable[[Any], Any], what: str, do: str) -> list[Any]:
        """The results of a call to each engine that answers, at least one."""

        def obstacle() -> Obstacle:
            way_out = "it ends by itself; an engine that does not answer is ended and left out"
            return Obstacle(f"the engines to {do}", f"{len(seats)} engine(s) do it", way_out)

        seats: list[Seat] = []
        with waiting(what, obstacle):
            while True:
                seats = self.seats() or [self.take()]
                calls = [(seat, call(seat.handle)) for seat in seats]
                results = [result for seat, c in calls for result in self._unless_dead(seat, c)]
                if results:
                    return results

    def _unless_dead(self, seat: Seat, call: Any) -> list[Any]:
        """The result of an engine's call; nothing if the engine is dead."""
        try:
            return [_result(call)]
        except RayActorError:
            self._leave(seat)
            return []

    def _leave(self, seat: Seat) -> None:
        """Give an engine no more work: the keeper brings it back if it answers after all."""
        ray.get(self.desk.leave.remote(seat.number, seat.start))


class Engines:
    """Engines that start when they are first asked for and end with the block: one pool for
    several stages, none where every stage is finished.

    Args:
        model: what they start with; other weights of its architecture are pushed into them.
        sampling: its `engines` section, and the longest completion.
        max_prompt_tokens: longest prompt of all stages, in tokens.
        what: who uses them, for the log.
        may_start: whether other stages find their places beside so many engines, asked before an
            engine whose node was lost is started elsewhere.
    """

    def __init__(
        self,
        model: ModelConfig,
        sampling: SamplingConfig,
        max_prompt_tokens: int,
        what: str,
        may_start: Callable[[int], bool] | None = None,
    ) -> None:
        self._pool: EnginePool | None = None
        self._stack = ExitStack()
        self._block = (model, sampling, max_prompt_tokens, what, None, Engine, may_start)
        self._lock = threading.RLock()
        self._in_use = False
        self._gives_way = False
        #: How often they were started: once, unless they were closed in between.
        self.starts = 0

    def pool(self) -> EnginePool:
        """The pool; started now, if it is not there. In use until `idle` is called.

        Raises:
            EngineError, ConfigError, ModelError: see `engine_pool`.
        """
        with self._lock:
            self._in_use = True
            if self._pool is None:
                self.starts += 1
                again = self.starts > 1
                pool = engine_pool(*self._block, where_there_is_room=again)
                self._pool = self._stack.enter_context(pool)
            return self._pool

    def idle(self) -> None:
        """Mark the engines unused until the next request; end them if others need room."""
        with self._lock:
            self._in_use = False
            if self._gives_way:
                self.close()

    def give_way(self) -> bool:
        """End as soon as nobody uses them; return whether this is new."""
        with self._lock:
            news = self.running and not self._gives_way
            self._gives_way = self.running
            if not self._in_use:
                self.close()
            return news

    @property
    def current(self) -> EnginePool | None:
        """The pool, where they hold their share of the cluster now."""
        return self._pool

    @property
    def running(self) -> bool:
        """Whether they hold their share of the cluster now."""
        return self._pool is not None

    def living(self) -> int:
        """How many of them answer now."""
        pool = self._pool
        return len(pool.seats()) if pool is not None else 0

    def close(self) -> None:
        """End them, and free what they hold; asked for again, they start again."""
        with self._lock:
            self._pool = None
            self._gives_way = False
            self._stack.close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def engine_pool(
    model: ModelConfig,
    sampling: SamplingConfig,
    max_prompt_tokens: int,
    what: str,
    at_most: int | None = None,
    engine_class: type[Engine] = Engine,
    may_start: Callable[[int], bool] | None = None,
    *,
    where_there_is_room: bool = False,
) -> Generator[EnginePool]:
    """Start the engines, wait until all are ready, and end them with the block.

    Args:
        model: the policy that samples.
        sampling: its `engines` section, and the longest completion.
        max_prompt_tokens: longest prompt, in tokens.
        what: the stage and round, for the log.
        at_most: start no more engines than there is work for.
        engine_class: what runs in the actors.
        may_start: see `Engines`; without it as many as were asked for may.
        where_there_is_room: start only as many as the nodes of now have places for, one at least,
            and the others when there are more.

    Raises:
        EngineError: the cluster has no room for them.
        ConfigError, ModelError: the model cannot be loaded as asked.
    """
    engines = sampling.engines
    count = min(engines.count, at_most or engines.count)
    cuda = uses_cuda(engines.device)
    arguments = engine_arguments(model, sampling, max_prompt_tokens, cuda)
    gpus = engines.tensor_parallel * engines.gpu_share if cuda else 0
    actor: Any = ray.remote(engine_class).options(
        num_cpus=engines.cpus,
        num_gpus=gpus,
        max_concurrency=_CALLS_AT_ONCE,
        runtime_env={"env_vars": engine_environment(sampling, cuda)},
    )
    needs = Resources(engines.cpus, gpus)
    at_first = min(count, max(1, places_for(needs))) if where_there_is_room else count
    words = f"{count} engine(s) of {needs} each"
    logger.info("[%s] starting %s", what, words if at_first == count else f"{at_first} of {words}")
    started = time.monotonic()
    free = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    desk: Any = ray.remote(Desk).options(**free, scheduling_strategy=here()).remote()
    keeping = Keeping(
        start=lambda: actor.remote(model, arguments),
        count=count,
        at_first=at_first,
        needs=needs,
        settings=engines,
        desk=desk,
        what=what,
        may_start=may_start or (lambda _: True),
    )
    try:
        with holding(words), kept(keeping), telling(desk):
            logger.info("[%s] engines ready after %.1f s", what, time.monotonic() - started)
            yield EnginePool(count, desk, engines, arguments["dtype"], arguments["max_model_len"])
    finally:
        cast(Any, ray).kill(desk)


def _result(call: Any) -> Any:
    """The result of an engine's call that is under way.

    Raises:
        RayActorError: the engine died, or was ended since it did not answer.
        RaydpoError: raised in an engine, it arrives here as it was raised.
    """
    with own_errors():
        return ray.get(call)
