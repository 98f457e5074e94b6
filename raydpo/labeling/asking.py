"""Ask a service for a value of each row: retry, halve, refuse single rows, and never guess.

Each row gets a value or a refusal. The rules:

1. A batch that fails for a passing reason is sent again, `max_attempts` times in all. Passing
   reasons are no connection, no answer in time, 408, 425, 429, 5xx, and an answer that is not a
   list with one reward for each completion. The waits double, and random numbers choose from
   their upper half ("equal jitter" of M. Brooker, "Exponential Backoff And Jitter", AWS
   Architecture Blog 2015). `Retry-After` makes them longer.
2. If single values are not finite numbers, raydpo asks for them again at once, without the rest.
3. A batch that still fails, or that the service refuses as such (400, 413, 422), is halved. For a
   row that is alone, the worker asks up to `max_attempts` times while it asks for nothing else.
   Then it refuses the row with the last answer.
4. Before raydpo blames rows for a failure, the service has to answer a row of raydpo's own. If it
   fails to in `max_attempts`, it is down: the run ends with one error, and no row is refused.
5. The run also ends for 429 in all attempts, for any other status, and if each of the first lone
   rows fails while no row has a reward.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx

from raydpo.config.http import ServiceConfig
from raydpo.core.errors import ServiceError
from raydpo.core.notices import tell
from raydpo.labeling.exchange import Failure
from raydpo.labeling.rewards import Refusal

_T = TypeVar("_T")
RowT = TypeVar("RowT")
ValueT = TypeVar("ValueT")

#: If this many rows fail alone and none has a value, the service is at fault.
_MOST_REFUSED: Final = 4
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 30.0
#: Number of failed attempts that are not logged, unless the wait is long.
_SILENT_ATTEMPTS: Final = 2
_SILENT_SECONDS: Final = 10.0
#: Interval at which a log line says what a worker waits for.
_SECONDS_BETWEEN_LINES: Final = 60.0


class Asked(Protocol[RowT, ValueT]):
    """A service that is asked for values of rows: a reward service, or a judge."""

    @property
    def name(self) -> str:
        """The service's name in messages."""
        ...

    @property
    def limits(self) -> ServiceConfig:
        """The limits of its requests."""
        ...

    @property
    def probe(self) -> RowT:
        """A row of raydpo's own, which a service that runs can answer."""
        ...

    @property
    def owed(self) -> str:
        """The answer that it must give, for messages."""
        ...

    @property
    def unit(self) -> str:
        """What a row is called in messages, in the plural."""
        ...

    async def ask(
        self, client: httpx.AsyncClient, rows: Sequence[RowT]
    ) -> list[ValueT | Refusal] | Failure:
        """Send one request; the result has the order of the rows."""
        ...


def run_loop(asking: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, also where a loop runs already, as in a notebook's cells."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asking).result()


@dataclass
class Questions(Generic[RowT, ValueT]):
    """Rows while a service is asked for their values.

    Attributes:
        values: the known result of each row, by its number.
    """

    service: Asked[RowT, ValueT]
    client: httpx.AsyncClient
    rows: list[RowT]
    values: dict[int, ValueT | Refusal] = field(default_factory=dict[int, ValueT | Refusal])

    def __post_init__(self) -> None:
        self._asking = Asking(self.service, self.client)
        self._refused = 0
        self._begun = time.monotonic()

    async def judge(self, indices: list[int], attempts: int) -> None:
        """Judge some rows; `attempts` is how many times they are sent together."""
        most = self.service.limits.max_attempts
        for _ in range(most):
            rows = [self.rows[index] for index in indices]
            answer = await asked(self._asking, rows, attempts)
            if isinstance(answer, Failure) and answer.throttled and attempts < most:
                answer = await asked(self._asking, rows, most)
            if isinstance(answer, Failure):
                await self._judge_in_parts(indices, answer)
                return
            self.values |= dict(zip(indices, answer, strict=True))
            indices = [i for i in indices if isinstance(self.values[i], Refusal)]
            if not indices:
                return

    async def _judge_in_parts(self, indices: list[int], failure: Failure) -> None:
        self._refuse_throttled(failure)
        await self._see_that_it_answers(failure, self._asking)
        middle = len(indices) // 2
        halves = [half for half in (indices[:middle], indices[middle:]) if half]
        await all_of(
            self.judge(half, 1) if half[1:] else self._judge_alone(half[0]) for half in halves
        )

    async def _judge_alone(self, index: int) -> None:
        """Judge one row while this worker requests no other; the row may crash the service."""
        most = self.service.limits.max_attempts
        reason, attempt = "", 0
        for attempt in range(1, most + 1):
            async with self._asking.alone() as asking:
                answer = await asking.ask([self.rows[index]])
                if isinstance(answer, Failure):
                    await self._see_that_it_answers(answer, asking)
            if not isinstance(answer, Failure):
                self.values[index] = answer[0]
                if not isinstance(answer[0], Refusal):
                    return
                reason = answer[0].reason
            else:
                if not answer.throttled:
                    reason = f"the {self.service.name} {answer.reason}"
                elif not reason and attempt == most:
                    self._refuse_throttled(answer)
                if answer.kind == "rows" or attempt == most:
                    break
                await asyncio.sleep(max(_wait_seconds(attempt), answer.wait_seconds))
        self._refuse(index, f"{reason}, alone and in {attempt} of {most} attempts")

    def _refuse(self, index: int, reason: str) -> None:
        self.values[index] = Refusal(reason)
        self._refused += 1
        scored = any(not isinstance(value, Refusal) for value in self.values.values())
        if self._refused >= _MOST_REFUSED and not scored:
            raise ServiceError(
                f"{reason}, and so for each of {self._refused} {self.service.unit}",
                self.service.owed,
                "look at the service's log; `raydpo check CONFIG` asks it for two rows",
            )

    def _refuse_throttled(self, failure: Failure) -> None:
        """Raise if every attempt was refused for too many requests, which is not a row's fault."""
        if failure.throttled:
            raise error_of(self.service, failure, f"{failure.reason}, in all attempts")

    async def _see_that_it_answers(self, failure: Failure, asking: Asking[RowT, ValueT]) -> None:
        """Continue only if the service answers another row; otherwise the rows are not at fault.

        Raises:
            ServiceError: the service does not answer.
        """
        if failure.kind == "final":
            raise error_of(self.service, failure, failure.reason)
        if failure.kind == "rows" or failure.throttled:  # these already count as an answer
            return
        most = self.service.limits.max_attempts
        answer = await asked(asking, [self.service.probe], most)
        if isinstance(answer, Failure) and answer.kind != "rows":
            what = f"{answer.reason}; it answered no other row in {most} attempts, either"
            raise error_of(self.service, answer, what)

    async def tell_each_minute(self) -> None:
        """Log what the worker waits for, at intervals, as long as it waits."""
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LINES)
            seconds = time.monotonic() - self._begun
            done = f"{len(self.values):,} of {len(self.rows):,} {self.service.unit} are judged"
            tell(f"waits for {self.service.name} since {seconds:.0f} s: {done}")


@dataclass
class Asking(Generic[RowT, ValueT]):
    """Requests to a service, with a limit on how many run at a time."""

    service: Asked[RowT, ValueT]
    client: httpx.AsyncClient

    def __post_init__(self) -> None:
        self._count = self.service.limits.max_concurrent_requests
        self._slots = asyncio.Semaphore(self._count)
        self._one = asyncio.Lock()

    async def ask(self, rows: Sequence[RowT]) -> list[ValueT | Refusal] | Failure:
        """Send one request as soon as there is a slot for it."""
        async with self._slots:
            return await self.service.ask(self.client, rows)

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[Asking[RowT, ValueT]]:
        """Allow only requests for the given rows inside the block."""
        async with self._one:
            held = 0
            try:
                for _ in range(self._count):
                    await self._slots.acquire()
                    held += 1
                yield Asking(self.service, self.client)
            finally:
                for _ in range(held):
                    self._slots.release()


async def asked(
    asking: Asking[RowT, ValueT], rows: Sequence[RowT], attempts: int
) -> list[ValueT | Refusal] | Failure:
    """Return the service's answers for these rows; retry a failure that may pass.

    The result is the last failure other than 429, or 429 if there was no other.
    """
    begun = time.monotonic()
    last: Failure | None = None
    for attempt in range(1, attempts + 1):
        answer = await asking.ask(rows)
        if not isinstance(answer, Failure) or answer.kind != "passing":
            return answer
        last = answer if last is None or not answer.throttled else last
        if attempt == attempts:
            return last
        wait = max(_wait_seconds(attempt), answer.wait_seconds)
        if attempt > _SILENT_ATTEMPTS or wait > _SILENT_SECONDS:
            tried = f"{attempt} of {attempts} attempts in {time.monotonic() - begun:.0f} s"
            tell(f"{asking.service.name} {answer.how}: {tried}, the next in {wait:.0f} s")
        await asyncio.sleep(wait)
    raise AssertionError("the last attempt returns")


def _wait_seconds(attempt: int) -> float:
    longest = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311 - no secret


async def all_of(judging: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all requests; if one fails, cancel the others."""
    tasks = [asyncio.create_task(one) for one in judging]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client_of(limits: ServiceConfig) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client that keeps a service's limits and follows no redirect."""
    count = limits.max_concurrent_requests
    async with httpx.AsyncClient(
        timeout=limits.timeout_seconds,
        limits=httpx.Limits(max_connections=count, max_keepalive_connections=count),
        trust_env=urlsplit(limits.url).hostname != "127.0.0.1",  # no proxy leads here
        follow_redirects=False,  # a redirect would send the headers to another host
    ) as client:
        yield client


def error_of(service: Asked[RowT, ValueT], failure: Failure, what: str) -> ServiceError:
    """Return the error that ends a run, for what a service did."""
    return ServiceError(f"{service.name} {what}", service.owed, _way_out(failure))


def _way_out(failure: Failure) -> str:
    if failure.throttled or failure.wait_seconds:
        return (
            "lower `max_concurrent_requests`, `workers` or `batch_size`, or raise `max_attempts`; "
            "the same command goes on from here"
        )
    if failure.kind == "final":
        return (
            "fix `url` and, if the service asks for credentials, `headers_from_environment`; "
            "`raydpo check CONFIG` asks it for two rows"
        )
    return (
        "see that the service runs and that this node reaches it (address, proxies, network); a "
        "slow one gets a longer `timeout_seconds`; the same command goes on from here"
    )
