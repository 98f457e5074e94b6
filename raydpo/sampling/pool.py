"""The pool of engine actors: started once, used by as many stages as its block holds.

What comes in: the model and how many engines of which kind. What goes out: an
`EnginePool`, picklable, whose engines answer calls from anywhere in the cluster. An
engine that dies is started again by Ray and its open calls are made again; seeds make
the second answer equal to the first.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import ray
from ray.exceptions import RayActorError

from raydpo.cluster import uses_cuda
from raydpo.config import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.errors import EngineError
from raydpo.parts import own_errors
from raydpo.progress import logger
from raydpo.sampling.engine import (
    Answers,
    Engine,
    Request,
    engine_arguments,
    engine_environment,
)

#: Calls that one engine answers at once; more than its workers ever make.
_CALLS_AT_ONCE: Final = 16
#: How long an autoscaling cluster may take to find room for the engines.
_PLACE_TIMEOUT_SECONDS: Final = 900.0
_SAY_EVERY_SECONDS: Final = 30.0


@dataclass(frozen=True)
class EnginePool:
    """Handles of the engines, and of the desk that deals them out and counts their work."""

    engines: tuple[Any, ...]
    desk: Any

    def take(self) -> Any:
        """The engine whose turn it is: each is taken equally often."""
        turn = cast(int, ray.get(self.desk.turn.remote()))
        return self.engines[turn % len(self.engines)]

    def count(self, completions: int, tokens: int) -> None:
        """Add to what the pool has made, without waiting."""
        self.desk.add.remote(completions, tokens)

    def made(self) -> tuple[int, int]:
        """Completions and tokens that the pool has made so far."""
        return cast("tuple[int, int]", ray.get(self.desk.made.remote()))


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
    gpus = engines.tensor_parallel if cuda else 0
    actor: Any = ray.remote(engine_class).options(
        num_cpus=engines.cpus,
        num_gpus=gpus,
        max_concurrency=_CALLS_AT_ONCE,
        max_restarts=engines.max_restarts,
        max_task_retries=-1,  # as often as the engine is started again
        runtime_env={"env_vars": engine_environment(sampling, cuda)},
    )
    holding = f"{count} engine(s) of {engines.cpus:g} CPUs and {gpus} GPUs each"
    logger.info("[%s] starting %s", what, holding)
    started = time.monotonic()
    desk: Any = ray.remote(_Desk).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    handles: tuple[Any, ...] = tuple(actor.remote(model, arguments) for _ in range(count))
    try:
        _wait_for_places(handles, holding, what)
        call_engine(engines, *[handle.ready.remote() for handle in handles])
        logger.info("[%s] engines ready after %.1f s", what, time.monotonic() - started)
        yield EnginePool(handles, desk)
    finally:
        for handle in (*handles, desk):
            cast(Any, ray).kill(handle)


def generate(engine: Any, requests: list[Request], sampling: SamplingConfig) -> Answers:
    """Let one engine of a pool complete the prompts, and wait for it.

    Raises:
        EngineError: the engine died more often than `sampling.engines.max_restarts`.
    """
    return call_engine(sampling.engines, engine.generate.remote(requests, sampling))[0]


def call_engine(engines: EnginesConfig, *calls: Any) -> list[Any]:
    """The results of calls that are under way.

    Raises:
        EngineError: an engine died more often than it may.
        RaydpoError: raised in an engine, it arrives here as it was raised.
    """
    try:
        with own_errors():
            return ray.get(list(calls))
    except RayActorError as error:
        raise EngineError(
            f"an engine died, and may be started again {engines.max_restarts} time(s) "
            f"(sampling.engines.max_restarts): {error}",
            "engines live as long as their stage",
            "the engine's own log says why: run with --verbose, or read it in Ray's log folder; "
            "often memory is short: lower sampling.engines.cpu_kv_cache_gib, "
            "gpu_memory_fraction or max_sequence_tokens",
        ) from error


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


class _Desk:
    """Actor: deals out engines in turn, and counts what they made."""

    def __init__(self) -> None:
        self._turns = 0
        self._completions = 0
        self._tokens = 0

    def turn(self) -> int:
        self._turns += 1
        return self._turns - 1

    def add(self, completions: int, tokens: int) -> None:
        self._completions += completions
        self._tokens += tokens

    def made(self) -> tuple[int, int]:
        return self._completions, self._tokens
