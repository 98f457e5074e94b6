"""Score completions with an HTTP service.

Each completion gets a reward or a refusal, whatever the service does; `asking.py` has the rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from raydpo.config.http import HttpConfig
from raydpo.labeling.asking import Asking, Questions, all_of, asked, client_of, error_of, run_loop
from raydpo.labeling.exchange import Failure
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.service import Row, Service, service_of
from raydpo.labeling.signature import NO_LISTS, Lists


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
    return run_loop(_judged(service_of(http), batch_size, rows))


def rows_of(http: HttpConfig, prompts: list[str], completions: list[str], more: Lists) -> list[Row]:
    """Return what the service gets of each completion: the texts, and the columns that it names."""
    return [
        Row(prompt, completion, {n: more[n][i] for n in http.columns if n in more})
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


async def _judged(service: Service, batch_size: int, rows: list[Row]) -> Judged:
    async with client_of(service.http) as client:
        part = Questions(service, client, rows)
        telling = asyncio.create_task(part.tell_each_minute())
        batches = [range(len(rows))[n : n + batch_size] for n in range(0, len(rows), batch_size)]
        try:
            await all_of(part.judge(list(batch), service.http.max_attempts) for batch in batches)
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
        async with client_of(service.http) as client:
            return await asked(Asking(service, client), rows, min(attempts, http.max_attempts))

    answered = run_loop(answer())
    if isinstance(answered, Failure):
        raise error_of(service, answered, f"{answered.reason}, for two rows")
    return answered
