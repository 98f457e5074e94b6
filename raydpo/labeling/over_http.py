"""Score completions with an HTTP service: retry, halve, refuse single rows, and never guess.

Each completion gets a reward or a refusal. The rules:

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
from typing import Any, Final, TypeVar

import httpx

from raydpo.config.http import HttpConfig
from raydpo.core.errors import ServiceError
from raydpo.core.notices import tell
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.service import Failure, Row, Service, service_of
from raydpo.labeling.signature import NO_LISTS, Lists

_T = TypeVar("_T")

#: raydpo's own row, which distinguishes a service that is down from one that fails on some rows.
PROBE: Final = Row("A prompt.", " A completion.")
#: If this many rows fail alone and none has a reward, the service is at fault.
_MOST_REFUSED: Final = 4
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 30.0
#: Number of failed attempts that are not logged, unless the wait is long.
_SILENT_ATTEMPTS: Final = 2
_SILENT_SECONDS: Final = 10.0
#: Interval at which a log line says what a worker waits for.
_SECONDS_BETWEEN_LINES: Final = 60.0
#: The answer that a service must give.
OWED_BY_SERVICES: Final = (
    'a reward service answers each request with status 200 and {"rewards": [...]}, a number for '
    "each completion; what fails for a while is tried again"
)


def judge_over_http(
    http: HttpConfig,
    batch_size: int,
    prompts: list[str],
    completions: list[str],
    more: Lists = NO_LISTS,
) -> Judged:
    """Return rewards or refusals, whatever the service does; there are no default rewards.

    Args:
        http: the service.
        batch_size: completions in one request.
        prompts: the prompts of one part.
        completions: one for each prompt.
        more: further lists of that length; the service gets those that its `columns` name.

    Raises:
        ConfigError: an environment variable of a header is not set.
        ServiceError: the service is down, refuses the kind of request, or fails on all rows.
    """
    if not completions:  # all prompts of the part were refused
        return Judged([])
    rows = rows_of(http, prompts, completions, more)
    return _run(_judged(service_of(http), batch_size, rows))


def rows_of(http: HttpConfig, prompts: list[str], completions: list[str], more: Lists) -> list[Row]:
    """Return what the service gets of each completion: the texts, and the columns that it names."""
    return [
        Row(prompt, completion, {n: more[n][i] for n in http.columns if n in more})
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


async def _judged(service: Service, batch_size: int, rows: list[Row]) -> Judged:
    async with _client(service) as client:
        part = _Part(service, client, rows)
        telling = asyncio.create_task(part.tell_each_minute())
        batches = [range(len(rows))[n : n + batch_size] for n in range(0, len(rows), batch_size)]
        try:
            await _all(part.judge(list(batch), service.http.max_attempts) for batch in batches)
        finally:
            telling.cancel()
        return Judged([part.values[index] for index in range(len(rows))])


def probe(http: HttpConfig, rows: Sequence[Row], attempts: int) -> list[float | Refusal]:
    """Return the service's answers for these rows.

    Raises:
        ConfigError: an environment variable of a header is not set.
        ServiceError: the service gives no answer for any of them.
    """
    service = service_of(http)

    async def answer() -> list[float | Refusal] | Failure:
        async with _client(service) as client:
            return await _asked(_Asking(service, client), rows, min(attempts, http.max_attempts))

    answered = _run(answer())
    if isinstance(answered, Failure):
        raise _error(service, answered, f"{answered.reason}, for two rows")
    return answered


def _run(asking: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, also where a loop runs already, as in a notebook's cells."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asking).result()


@dataclass
class _Part:
    """The rows of one part while they are judged.

    Attributes:
        values: the known result of each row, by its number.
    """

    service: Service
    client: httpx.AsyncClient
    rows: list[Row]
    values: dict[int, float | Refusal] = field(default_factory=dict[int, float | Refusal])

    def __post_init__(self) -> None:
        self._asking = _Asking(self.service, self.client)
        self._refused = 0
        self._begun = time.monotonic()

    async def judge(self, indices: list[int], attempts: int) -> None:
        """Judge some rows; `attempts` is how many times they are sent together."""
        most = self.service.http.max_attempts
        for _ in range(most):
            rows = [self.rows[index] for index in indices]
            answer = await _asked(self._asking, rows, attempts)
            if isinstance(answer, Failure) and answer.throttled and attempts < most:
                answer = await _asked(self._asking, rows, most)
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
        await _all(
            self.judge(half, 1) if half[1:] else self._judge_alone(half[0]) for half in halves
        )

    async def _judge_alone(self, index: int) -> None:
        """Judge one row while this worker requests no other; the row may crash the service."""
        most = self.service.http.max_attempts
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
                f"{reason}, and so for each of {self._refused} completions",
                OWED_BY_SERVICES,
                "look at the service's log; `raydpo check CONFIG` asks it for two rows",
            )

    def _refuse_throttled(self, failure: Failure) -> None:
        """Raise if every attempt was refused for too many requests, which is not a row's fault."""
        if failure.throttled:
            raise _error(self.service, failure, f"{failure.reason}, in all attempts")

    async def _see_that_it_answers(self, failure: Failure, asking: _Asking) -> None:
        """Continue only if the service answers another row; otherwise the rows are not at fault.

        Raises:
            ServiceError: the service does not answer.
        """
        if failure.kind == "final":
            raise _error(self.service, failure, failure.reason)
        if failure.kind == "rows" or failure.throttled:  # these already count as an answer
            return
        most = self.service.http.max_attempts
        answer = await _asked(asking, [PROBE], most)
        if isinstance(answer, Failure) and answer.kind != "rows":
            what = f"{answer.reason}; it answered no other row in {most} attempts, either"
            raise _error(self.service, answer, what)

    async def tell_each_minute(self) -> None:
        """Log what the worker waits for, at intervals, as long as it waits."""
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LINES)
            seconds = time.monotonic() - self._begun
            done = f"{len(self.values):,} of {len(self.rows):,} completions are judged"
            tell(f"waits for {self.service.name} since {seconds:.0f} s: {done}")


@dataclass
class _Asking:
    """Requests to a service, with a limit on how many run at a time."""

    service: Service
    client: httpx.AsyncClient

    def __post_init__(self) -> None:
        self._count = self.service.http.max_concurrent_requests
        self._slots = asyncio.Semaphore(self._count)
        self._one = asyncio.Lock()

    async def ask(self, rows: Sequence[Row]) -> list[float | Refusal] | Failure:
        """Send one request as soon as there is a slot for it."""
        async with self._slots:
            return await self.service.ask(self.client, rows)

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[_Asking]:
        """Allow only requests for the given rows inside the block."""
        async with self._one:
            held = 0
            try:
                for _ in range(self._count):
                    await self._slots.acquire()
                    held += 1
                yield _Asking(self.service, self.client)
            finally:
                for _ in range(held):
                    self._slots.release()


async def _asked(
    asking: _Asking, rows: Sequence[Row], attempts: int
) -> list[float | Refusal] | Failure:
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


async def _all(judging: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all requests; if one fails, cancel the others."""
    tasks = [asyncio.create_task(one) for one in judging]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _client(service: Service) -> AsyncGenerator[httpx.AsyncClient]:
    count = service.http.max_concurrent_requests
    async with httpx.AsyncClient(
        timeout=service.http.timeout_seconds,
        limits=httpx.Limits(max_connections=count, max_keepalive_connections=count),
        follow_redirects=False,  # a redirect would send the headers to another host
    ) as client:
        yield client


def _error(service: Service, failure: Failure, what: str) -> ServiceError:
    return ServiceError(f"{service.name} {what}", OWED_BY_SERVICES, _way_out(failure))


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
