"""Which completions of a prompt are compared with each other."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeVar, assert_never

Schedule = Literal["round_robin", "knockout", "against_baseline"]


class Played(Protocol):
    """A comparison that was made."""

    @property
    def share(self) -> float | None:
        """The first one's share of the votes, between 0 and 1; None if there is no vote."""
        ...


PlayedT = TypeVar("PlayedT", bound=Played)


async def played(
    schedule: Schedule, count: int, play: Callable[[int, int], Awaitable[PlayedT]]
) -> list[PlayedT]:
    """Make the comparisons of a schedule, those that do not wait for others at the same time.

    Args:
        schedule: `round_robin` compares all with all. `against_baseline` compares number 0 with
            each other one. `knockout` compares neighbours, and the winners go on; from a tie, the
            one of the lower number goes on; without a vote, neither does.
        count: how many there are.
        play: compares two of them, the one of the lower number first.
    """
    match schedule:
        case "round_robin":
            pairs = list(itertools.combinations(range(count), 2))
        case "against_baseline":
            pairs = [(0, other) for other in range(1, count)]
        case "knockout":
            return await _knockout(count, play)
        case _:
            assert_never(schedule)
    return list(await asyncio.gather(*(play(a, b) for a, b in pairs)))


async def _knockout(count: int, play: Callable[[int, int], Awaitable[PlayedT]]) -> list[PlayedT]:
    made: list[PlayedT] = []
    left = list(range(count))
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        results = await asyncio.gather(*(play(a, b) for a, b in pairs))
        made += results
        unpaired = left[2 * len(pairs) :]
        left = [
            a if result.share >= 0.5 else b
            for (a, b), result in zip(pairs, results, strict=True)
            if result.share is not None
        ] + unpaired
    return made
