"""Let a judge score completions one by one, by a rubric."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from raydpo.core.errors import DataError
from raydpo.labeling.judges.panel import Panel
from raydpo.labeling.judges.replies import Reply
from raydpo.labeling.rewards import Judged, Note, Refusal
from raydpo.labeling.signature import MESSAGES, Lists


async def score(panel: Panel, prompts: list[str], completions: list[str], more: Lists) -> Judged:
    """Return each completion's mean score over the panel, or a refusal.

    A completion for which one of the judges has no score is refused: means over different judges
    cannot be compared.

    Raises:
        ServiceError, BudgetError: the run cannot go on.
    """
    rows = [
        (prompt, completion, columns_of(panel, more, index), messages_of(more, index))
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    found = await gathered(*(_score(panel, *row) for row in rows))
    values, notes = [value for value, _ in found], [note for _, note in found]
    return Judged(values, notes=notes, counts=panel.counts(), sums=panel.sums())


async def _score(
    panel: Panel, prompt: str, completion: str, columns: Mapping[str, Any], messages: Any
) -> tuple[float | Refusal, Note]:
    try:
        text = panel.bench.rubric.question(prompt, messages, {"completion": completion}, columns)
    except DataError as error:
        return Refusal(error.value), Note()
    replies = await panel.replies(text)
    refusals = [reply for reply in replies if isinstance(reply, Refusal)]
    if refusals:
        return Refusal("; ".join(refusal.reason for refusal in refusals)), Note()
    given = [reply for reply in replies if isinstance(reply, Reply)]
    return fmean(int(reply.value) for reply in given), Note(_rationale(panel, given))


def _rationale(panel: Panel, replies: list[Reply]) -> str:
    """Return the judge's own words; of a panel, each member's with its score."""
    if len(replies) == 1:
        return replies[0].rationale
    named = zip(panel.bench.judge.members, replies, strict=True)
    return "\n".join(f"{member.model} ({r.value}): {r.rationale}" for member, r in named)


def columns_of(panel: Panel, more: Lists, index: int) -> dict[str, Any]:
    """Return the columns of the data that the rubric names, of one row."""
    return {name: more[name][index] for name in panel.bench.rubric.columns if name in more}


def messages_of(more: Lists, index: int) -> Any:
    """Return the messages of one row's prompt; None if there are none."""
    return more[MESSAGES][index] if MESSAGES in more else None


async def gathered(*work: Any) -> list[Any]:
    """Wait for all; if one fails, cancel the others and wait for their end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
