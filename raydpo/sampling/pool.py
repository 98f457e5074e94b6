"""The pool of engine actors: started once, used by as many stages as its block holds.

What comes in: the model and how many engines of which kind. What goes out: an
`EnginePool`, picklable, whose engines answer calls from anywhere in the cluster, with
the weights that the call names. An engine that dies is started again by Ray and its open
calls are made again; seeds make the second answer equal to the first. One that dies too
often leaves its work to the others.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import ray
from ray.exceptions import RayActorError

from raydpo.cluster import uses_cuda
from raydpo.config import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.errors import EngineError, own_errors
from raydpo.progress import logger
from raydpo.sampling.arguments import engine_arguments, engine_environment
from raydpo.sampling.desk import Desk, telling
from raydpo.sampling.engine import Answers, Engine, Request
from raydpo.sampling.weights import Weights

#: Calls that one engine answers at once; more than its workers ever make.
_CALLS_AT_ONCE: Final = 16
#: How long an autoscaling cluster may take to find room for the engines.
_PLACE_TIMEOUT_SECONDS: Final = 900.0
_SAY_EVERY_SECONDS: Final = 30.0
#: An engine whose call takes longer than the first is asked whether it is there, and has the second to say so.
ASK_AFTER_SECONDS: Final = 30.0
ANSWER_WITHIN_SECONDS: Final = 60.0


class _Silent(Exception):
    """An engine does not answer: its process hangs, or waits for a place on another node."""


#: What says that an engine's work is for others to do.
_GONE: Final = (RayActorError, _Silent)


@dataclass(frozen=True)
class EnginePool:
    """Handles of the engines, and of the desk that deals them out and counts their work.

    Attributes:
        engines: actor handles.
        desk: actor handle.
        settings: how the engines were asked for.
        dtype: of their weights and activations.
        max_sequence_tokens: longest sequence that they make room for.
    """

    engines: tuple[Any, ...]
    desk: Any
    settings: EnginesConfig
    dtype: str
    max_sequence_tokens: int

    def take(self) -> int:
        """Number of the engine whose turn it is: each that lives is taken equally often.

        Raises:
            EngineError: all of them died more often than `sampling.engines.max_restarts`.
        """
        return self._turn(None)

    def generate(
        self, number: int, requests: list[Request], sampling: SamplingConfig, weights: Weights
    ) -> tuple[int, Answers]:
        """Let an engine complete the prompts, and wait; another does it where that one is dead.

        Returns the number of the engine that answered, and its answers.

        Raises:
            EngineError: all of them died more often than `sampling.engines.max_restarts`.
        """
        while True:
            call = self.engines[number].generate.remote(requests, sampling, weights)
            try:
                return number, self._result(number, call)
            except _GONE as error:
                self._bury(number, error)
                number = self._turn(error)

    def push(self, weights: Weights, what: str) -> float:
        """Bring every engine to the weights, in place, and say so; the seconds it took.

        Engines that hold them already do nothing. A call for other weights brings its
        engine to them by itself; this does it for all engines at once, before any work waits.

        Raises:
            ModelError, EngineError: an engine cannot hold these weights.
        """
        started = time.monotonic()
        calls = [(n, engine.hold.remote(weights)) for n, engine in self.living().items()]
        loading = [self._unless_dead(number, call) or 0.0 for number, call in calls]
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
        """Log-probs, in nats, that each engine that lives gives to completions; see `Engine.score`.

        Raises:
            ModelError, EngineError: an engine cannot hold these weights, or take a sequence.
        """
        living = self.living().items()
        calls = [(n, engine.score.remote(sequences, weights)) for n, engine in living]
        scored = [self._unless_dead(number, call) for number, call in calls]
        return [logps for logps in scored if logps is not None]

    def rest(self) -> None:
        """Let every engine sleep until its next call, where `sampling.engines.sleep` says so."""
        if not self.settings.sleep:
            return
        started = time.monotonic()
        for number, call in [(n, engine.sleep.remote()) for n, engine in self.living().items()]:
            self._unless_dead(number, call)
        logger.info("[engines] asleep after %.2f s", time.monotonic() - started)

    def living(self) -> dict[int, Any]:
        """Handles of the engines whose work was not left to others, by number."""
        return {number: self.engines[number] for number in ray.get(self.desk.living.remote())}

    def report(self, fingerprint: str, text: str) -> None:
        """Leave word of weights that did not come by `push`; it says so."""
        ray.get(self.desk.report.remote(fingerprint, text))

    def count(self, completions: int, tokens: int) -> None:
        """Add to what the pool has made, without waiting."""
        self.desk.add.remote(completions, tokens)

    def made(self) -> tuple[int, int]:
        """Completions and tokens that the pool has made so far."""
        return cast("tuple[int, int]", ray.get(self.desk.made.remote()))

    def idle_seconds(self) -> float:
        """Time since the pool last made something."""
        return cast(float, ray.get(self.desk.idle_seconds.remote()))

    def _result(self, number: int, call: Any) -> Any:
        """The result of an engine's call that is under way.

        Raises:
            RayActorError: the engine died more often than it may.
            _Silent: it does not answer, and others do.
            RaydpoError: raised in an engine, it arrives here as it was raised.
        """
        while not _answered([call], ASK_AFTER_SECONDS):
            asked = self.engines[number].process_id.remote()
            if _answered([call, asked], ANSWER_WITHIN_SECONDS):
                continue
            if self.living().keys() - {number}:
                raise _Silent(f"it has not answered for {ANSWER_WITHIN_SECONDS:g} s")
            self._say(f"engine {number}, the last one, does not answer: no place for it?")
        return _result(call)

    def _unless_dead(self, number: int, call: Any) -> Any:
        """The result of an engine's call; None where it is dead, and others live."""
        try:
            return self._result(number, call)
        except _GONE as error:
            self._bury(number, error)
            self._turn(error)
            return None

    def _bury(self, number: int, error: Exception) -> None:
        self._say(f"engine {number} is gone, and others do its work: {error}")
        ray.get(self.desk.bury.remote(number))

    def _say(self, text: str) -> None:
        """A warning for whoever reads the driver's log: it is mostly said in a worker."""
        self.desk.note.remote(text)

    def _turn(self, error: Exception | None) -> int:
        number = cast("int | None", ray.get(self.desk.turn.remote()))
        if number is None:
            raise _died(self.settings, error) from error
        return number


class Engines:
    """Engines that start when they are first asked for and end with the block: one pool for
    several stages, none where every stage is finished.

    Args:
        model: what they start with; other weights of its architecture are pushed into them.
        sampling: its `engines` section, and the longest completion.
        max_prompt_tokens: longest prompt of all stages, in tokens.
        what: who uses them, for the log.
        at_most: start no more engines than there is work for.
    """

    def __init__(
        self,
        model: ModelConfig,
        sampling: SamplingConfig,
        max_prompt_tokens: int,
        what: str,
        at_most: int | None = None,
    ) -> None:
        self._pool: EnginePool | None = None
        self._stack = ExitStack()
        self._block = (model, sampling, max_prompt_tokens, what, at_most)
        #: How often they were started: once, unless they were closed in between.
        self.starts = 0

    def pool(self) -> EnginePool:
        """The pool; started now, if it is not there.

        Raises:
            EngineError, ConfigError, ModelError: see `engine_pool`.
        """
        if self._pool is None:
            self.starts += 1
            self._pool = self._stack.enter_context(engine_pool(*self._block))
        return self._pool

    @property
    def running(self) -> bool:
        """Whether they hold their share of the cluster now."""
        return self._pool is not None

    def close(self) -> None:
        """End them, and free what they hold; asked for again, they start again."""
        self._pool = None
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
) -> Generator[EnginePool]:
    """Start the engines, wait until all are ready, and end them with the block.

    Args:
        model: the policy that samples.
        sampling: its `engines` section, and the longest completion.
        max_prompt_tokens: longest prompt, in tokens.
        what: the stage and round, for the log.
        at_most: start no more engines than there is work for.
        engine_class: what runs in the actors.

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
        max_restarts=engines.max_restarts,
        max_task_retries=-1,  # as often as the engine is started again
        runtime_env={"env_vars": engine_environment(sampling, cuda)},
    )
    holding = f"{count} engine(s) of {engines.cpus:g} CPUs and {gpus:g} GPUs each"
    logger.info("[%s] starting %s", what, holding)
    started = time.monotonic()
    free = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    desk: Any = ray.remote(Desk).options(**free).remote(count)
    handles: tuple[Any, ...] = tuple(actor.remote(model, arguments) for _ in range(count))
    try:
        _wait_for_places(handles, holding, what)
        _wait_until_loaded(handles, engines)
        logger.info("[%s] engines ready after %.1f s", what, time.monotonic() - started)
        with telling(desk):
            yield EnginePool(handles, desk, engines, arguments["dtype"], arguments["max_model_len"])
    finally:
        for handle in (*handles, desk):
            cast(Any, ray).kill(handle)


def _answered(calls: list[Any], seconds: float) -> bool:
    """Whether one of the calls has a result, or has it in time."""
    return bool(cast(Any, ray).wait(calls, num_returns=1, timeout=seconds, fetch_local=False)[0])


def _result(call: Any) -> Any:
    """The result of an engine's call that is under way.

    Raises:
        RayActorError: the engine died more often than it may.
        RaydpoError: raised in an engine, it arrives here as it was raised.
    """
    with own_errors():
        return ray.get(call)


def _died(settings: EnginesConfig, error: BaseException | None) -> EngineError:
    return EngineError(
        f"every engine died, and may be started again {settings.max_restarts} time(s) "
        f"(sampling.engines.max_restarts): {error}",
        "one engine of a pool lives at least",
        "the engine's own log says why: run with --verbose, or read it in Ray's log folder; "
        "often memory is short: lower sampling.engines.cpu_kv_cache_gib, "
        "gpu_memory_fraction, max_batch_sequences or max_sequence_tokens",
    )


def _wait_until_loaded(handles: tuple[Any, ...], settings: EnginesConfig) -> None:
    try:
        for call in [handle.ready.remote() for handle in handles]:
            _result(call)
    except RayActorError as error:
        raise _died(settings, error) from error


def _wait_for_places(handles: tuple[Any, ...], holding: str, what: str) -> None:
    """Wait until Ray has placed every engine, and say what is missing meanwhile."""
    waiting: list[Any] = [handle.process_id.remote() for handle in handles]
    deadline = time.monotonic() + _PLACE_TIMEOUT_SECONDS
    while waiting := _still_waiting(waiting):
        total: dict[str, float] = cast(Any, ray).cluster_resources()
        cluster = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
        if time.monotonic() > deadline:
            raise EngineError(
                f"{len(waiting)} of {holding} found no place in {_PLACE_TIMEOUT_SECONDS:.0f} s",
                f"the cluster has room for all of them; it has {cluster}",
                "lower sampling.engines.count or cpus, or give the cluster more nodes",
            )
        text = "[%s] %d of %s wait for a place; the cluster has %s"
        logger.info(text, what, len(waiting), holding, cluster)


def _still_waiting(calls: list[Any]) -> list[Any]:
    """The calls that have not answered after a while."""
    return cast(Any, ray).wait(
        calls, num_returns=len(calls), timeout=_SAY_EVERY_SECONDS, fetch_local=False
    )[1]
