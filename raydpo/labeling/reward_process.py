"""Run a reward function in a separate process, which may end or hang without the worker."""

from __future__ import annotations

from typing import Any, ClassVar

from raydpo.config.job import RewardConfig
from raydpo.core.halving import Halving
from raydpo.core.own_code import OwnCode
from raydpo.core.own_looks import code_at
from raydpo.core.own_looks import look_at as look_at_function
from raydpo.core.own_process import Ended, Look, OwnProcess
from raydpo.labeling import reward_child
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.signature import ANY_NAME, MESSAGES, NO_LISTS, OWED, Lists


def as_asked(
    reward: RewardConfig, prompts: list[str], completions: list[str], more: Lists
) -> tuple[list[Any], list[Any]]:
    """Return prompts and completions as the function wants them: as texts, or as messages.

    A prompt without messages becomes one message of the user.
    """
    if not reward.as_messages:
        return prompts, completions
    known = more.get(MESSAGES) or [None] * len(prompts)
    asked = [
        messages or [{"role": "user", "content": prompt}]
        for prompt, messages in zip(prompts, known, strict=True)
    ]
    return asked, [[{"role": "assistant", "content": completion}] for completion in completions]


class RewardProcess(OwnProcess):
    """The process of one reward function."""

    what: ClassVar[str] = "reward function"
    owed: ClassVar[str] = OWED
    child: ClassVar[str] = reward_child.__name__

    def judge(
        self,
        prompts: list[Any],
        completions: list[Any],
        seconds: float,
        some_of_many: bool = False,
        more: Lists = NO_LISTS,
    ) -> Judged | Ended:
        """Return the function's results; `some_of_many` and `more` as in `judge_with_function`.

        Of `more`, the process gets the lists that the function reads.

        Raises:
            ConfigError, DataError: the errors that `judge_with_function` raises there.
        """
        look = self.look()
        if isinstance(look, Ended):
            return look
        read = {
            n: values for n, values in more.items() if n in look.names or ANY_NAME in look.names
        }
        question = {
            "prompts": prompts,
            "completions": completions,
            "some_of_many": some_of_many,
            "more": read,
        }
        answer = self.ask(question, seconds, f"on {len(completions)} completions")
        if isinstance(answer, Ended):
            return answer
        rows = zip(answer["values"], answer["reasons"], answer["do_not_apply"], strict=True)
        return Judged(
            [v if reason is None else Refusal(reason, does_not_apply=no) for v, reason, no in rows]
        )


def judge_bounded(
    process: RewardProcess,
    reward: RewardConfig,
    prompts: list[str],
    completions: list[str],
    more: Lists = NO_LISTS,
) -> Judged:
    """Return rewards or refusals, whatever the function does to its process.

    Args:
        process: the process of the reward's function.
        reward: the reward, for its limits.
        prompts: the prompts of one part.
        completions: one for each prompt.
        more: further lists of that length, by name.

    Raises:
        ConfigError: the function cannot be called with what there is.
        DataError: the function raises, ends its process or hangs for every completion, or its
            result is not a list of that length.
    """
    asked = as_asked(reward, prompts, completions, more)

    def ask(
        begin: int, end: int, seconds: float, some_of_many: bool
    ) -> list[float | Refusal] | Ended:
        rows = asked[0][begin:end], asked[1][begin:end]
        further = {name: values[begin:end] for name, values in more.items()}
        answer = process.judge(*rows, seconds, some_of_many, further)
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


def look_at(path: str, import_seconds: float) -> Look:
    """Return a reward function's signature and file.

    Raises:
        ConfigError: it cannot be called with prompts and completions, or importing it ends its
            process or does not end; see `core/own_looks.py`.
    """
    return look_at_function(RewardProcess, path, import_seconds)


def code_of(path: str, import_seconds: float, depends_on: tuple[str, ...] = ()) -> OwnCode:
    """Return what the rewards of the function `path` depend on, with hashes.

    Raises:
        ConfigError: the function cannot be used, or a file that it depends on is not there.
    """
    return code_at(path, look_at(path, import_seconds), depends_on)
