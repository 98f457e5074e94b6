"""Isolate the rows for which a function of the user's own ends its process or hangs.

Each row of a batch gets an answer or a refusal. If a batch ends the process or takes too long, it
is sent again. Then it is halved until the faulty rows are alone. The module refuses them with the
reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from raydpo.core.errors import DataError
from raydpo.core.notices import tell
from raydpo.core.own_process import Ended

T = TypeVar("T")

#: A part of a batch gets its share of the time limit, but at least this many seconds.
_LEAST_SECONDS: Final = 60.0
#: If the process ends on this many single rows without ever answering, it fails on all.
_MOST_ENDS: Final = 4


@dataclass
class Halving(Generic[T]):
    """One batch of a function that may end or block its process.

    Args:
        count: rows of the batch.
        ask: given a range of rows, the seconds for it, and whether other rows exist beside them,
            it returns an answer for each, or how the process ended.
        refuse: makes an answer of the reason for which a row has none.
        timeout_seconds: time for the whole batch.
        max_attempts: how often the batch is tried, and then each row alone.
        function: the function, for messages: "reward function 'module:name'".
        rows: what the rows are, for messages: "completions".
        owed: what such a function takes and returns, for messages.
    """

    count: int
    ask: Callable[[int, int, float, bool], list[T] | Ended]
    refuse: Callable[[str], T]
    timeout_seconds: float
    max_attempts: int
    function: str
    rows: str
    owed: str
    _ends: int = 0
    _answers: int = 0
    _values: dict[int, T] = field(default_factory=dict[int, T])

    def answers(self) -> list[T]:
        """Return an answer or a refusal for each row.

        Raises:
            RaydpoError: `ask` raised it.
            DataError: the function ends its process or hangs for every row.
        """
        if not self.count:  # all rows of the part were refused before
            return []
        self._answer(0, self.count)
        return [self._values[index] for index in range(self.count)]

    def _answer(self, begin: int, end: int) -> None:
        """Get the answers of a range of rows, halving it if the process does not survive."""
        whole = end - begin == self.count
        attempts = self.max_attempts if whole or end - begin == 1 else 1
        how = ""
        for attempt in range(1, attempts + 1):
            answer = self.ask(begin, end, self._seconds(end - begin), not whole)
            if not isinstance(answer, Ended):
                self._answers += 1
                self._values |= dict(zip(range(begin, end), answer, strict=True))
                return
            how = answer.how
            which = f"{self.rows} {begin + 1} to {end} of {self.count}"
            tell(f"{self.function} {how}: {which}, attempt {attempt} of {attempts}")
        if end - begin == 1:
            self._refuse(begin, how)
            return
        middle = (begin + end) // 2
        self._answer(begin, middle)
        self._answer(middle, end)

    def _seconds(self, rows: int) -> float:
        limit = self.timeout_seconds
        return max(limit * rows / self.count, min(limit, _LEAST_SECONDS))

    def _refuse(self, index: int, how: str) -> None:
        self._values[index] = self.refuse(how)
        self._ends += 1
        if self._ends >= _MOST_ENDS and not self._answers:
            raise DataError(
                f"{self.function} {how}, and so for each of {self._ends} {self.rows} that it was "
                "given alone",
                self.owed,
                "fix that line: neither it nor what it calls may end the process, hang, or take "
                "more than `max_memory_gib`; a slow one gets a longer `timeout_seconds`",
            )
