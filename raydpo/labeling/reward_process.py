"""Run a reward function in a separate process, which may end or hang without the worker."""

from __future__ import annotations

from typing import ClassVar

from raydpo.config.job import RewardConfig
from raydpo.core.halving import Halving
from raydpo.core.own_process import Ended, OwnProcess
from raydpo.labeling import reward_child
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.signature import OWED


class RewardProcess(OwnProcess):
    """The process of one reward function."""

    what: ClassVar[str] = "reward function"
    owed: ClassVar[str] = OWED
    child: ClassVar[str] = reward_child.__name__

    def judge(
        self, prompts: list[str], completions: list[str], seconds: float, some_of_many: bool = False
    ) -> Judged | Ended:
        """Return the function's results; `some_of_many` as in `judge_with_function`.

        Raises:
            ConfigError, DataError: the errors that `judge_with_function` raises there.
        """
        question = {
            "prompts": prompts,
            "completions": completions,
            "some_of_many": some_of_many,
        }
        answer = self.ask(question, seconds, f"on {len(completions)} completions")
        if isinstance(answer, Ended):
            return answer
        pairs = zip(answer["values"], answer["reasons"], strict=True)
        return Judged([value if reason is None else Refusal(reason) for value, reason in pairs])


def judge_bounded(
    process: RewardProcess, reward: RewardConfig, prompts: list[str], completions: list[str]
) -> Judged:
    """Return rewards or refusals, whatever the function does to its process.

    Args:
        process: the process of the reward's function.
        reward: the reward, for its limits.
        prompts: the prompts of one part.
        completions: one for each prompt.

    Raises:
        ConfigError: the function cannot be called with prompts and completions.
        DataError: the function raises, ends its process or hangs for every completion, or its
            result is not a list of that length.
    """

    def ask(
        begin: int, end: int, seconds: float, some_of_many: bool
    ) -> list[float | Refusal] | Ended:
        rows = prompts[begin:end], completions[begin:end]
        answer = process.judge(*rows, seconds, some_of_many)
        return answer if isinstance(answer, Ended) else answer.values

    def refuse(how: str) -> float | Refusal:
        return Refusal(f"the reward function {how}", ended_process=True)

    halving = Halving(
        len(completions),
        ask,
        refuse,
        reward.timeout_seconds,
        reward.max_attempts,
        f"reward function {process.path!r}",
        "completions",
        OWED,
    )
    return Judged(halving.answers())
