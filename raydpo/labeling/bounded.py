"""Completions that a reward function does not come back from, told from all others.

What comes in: the function's process and a batch of completions. What goes out: a reward or a
refusal for each of them. A batch that ends or outlasts the process is called again; then it is
halved, until the completions that do so stand alone. They are refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from raydpo.config import RewardConfig
from raydpo.errors import DataError
from raydpo.labeling.reward_process import Ended, RewardProcess
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.signature import OWED
from raydpo.notices import tell

#: A half of a batch may take the same share of the limit, but so many seconds at least.
_LEAST_SECONDS: Final = 60.0
#: Where the process ends on so many completions alone, and has answered for none, it does for all.
_MOST_ENDS: Final = 4


def judge_bounded(
    process: RewardProcess, reward: RewardConfig, prompts: list[str], completions: list[str]
) -> Judged:
    """Rewards or refusals, whatever the function does to its process.

    Args:
        process: of the reward's function.
        reward: its limits.
        prompts: of one part.
        completions: one for each prompt.

    Raises:
        ConfigError: it cannot be called with prompts and completions.
        DataError: it raises, ends its process or hangs for every completion, or its result is
            not a list of that length.
    """
    if not completions:  # of a part whose prompts were all refused
        return Judged([])
    return _Batch(process, reward, prompts, completions).judged()


@dataclass
class _Batch:
    process: RewardProcess
    reward: RewardConfig
    prompts: list[str]
    completions: list[str]
    _ends: int = 0
    _answers: int = 0
    _values: dict[int, float | Refusal] = field(default_factory=dict[int, float | Refusal])

    def judged(self) -> Judged:
        """Rewards or refusals of all completions."""
        count = len(self.completions)
        self._judge(0, count)
        return Judged([self._values[index] for index in range(count)])

    def _judge(self, begin: int, end: int) -> None:
        """Judge a range of the completions, halved where the process does not survive it."""
        whole = end - begin == len(self.completions)
        attempts = self.reward.max_attempts if whole or end - begin == 1 else 1
        how = ""
        for attempt in range(1, attempts + 1):
            answer = self._ask(begin, end, some_of_many=not whole)
            if isinstance(answer, Judged):
                self._answers += 1
                self._values |= dict(zip(range(begin, end), answer.values, strict=True))
                return
            how = answer.how
            which = f"completions {begin + 1} to {end} of {len(self.completions)}"
            tell(f"{self._function} {how}: {which}, attempt {attempt} of {attempts}")
        if end - begin == 1:
            self._refuse(begin, how)
            return
        middle = (begin + end) // 2
        self._judge(begin, middle)
        self._judge(middle, end)

    def _ask(self, begin: int, end: int, some_of_many: bool) -> Judged | Ended:
        limit = self.reward.timeout_seconds
        share = limit * (end - begin) / len(self.completions)
        seconds = max(share, min(limit, _LEAST_SECONDS))
        prompts, completions = self.prompts[begin:end], self.completions[begin:end]
        return self.process.judge(prompts, completions, seconds, some_of_many)

    def _refuse(self, index: int, how: str) -> None:
        self._values[index] = Refusal(f"the reward function {how}", ended_process=True)
        self._ends += 1
        if self._ends >= _MOST_ENDS and not self._answers:
            raise DataError(
                f"{self._function} {how}, and so for each of {self._ends} completions that it was "
                "given alone",
                OWED,
                "mend that line: neither it nor what it calls may end the process, hang, or take "
                "more than `max_memory_gib`; a slow one gets a longer `timeout_seconds`",
            )

    @property
    def _function(self) -> str:
        return f"reward function {self.reward.function!r}"
