"""Run a reward function in a separate process, which may end or hang without the worker."""

from __future__ import annotations

from typing import Any, ClassVar

from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.core.halving import Halving
from raydpo.core.own_code import OwnCode
from raydpo.core.own_looks import code_at
from raydpo.core.own_looks import look_at as look_at_function
from raydpo.core.own_process import Ended, Look, OwnProcess
from raydpo.labeling import reward_child
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.signature import (
    ANY_NAME,
    MESSAGES,
    NO_LISTS,
    NO_OPTIONS,
    OWED,
    OWN_LISTS,
    Lists,
    Options,
)


def columns_as_named(reward: RewardConfig, more: Lists) -> Lists:
    """Return the lists with columns of the data under the names that the function has for them."""
    return {**more, **{name: more[c] for name, c in reward.columns.items() if c in more}}


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
        given: Options = NO_OPTIONS,
    ) -> Judged | Ended:
        """Return the function's results; `some_of_many` and `more` as in `judge_with_function`.

        Of `more`, the process gets the lists that the function reads. `given` are the values of
        the process's `options`.

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
            "given": dict(given),
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
    named = columns_as_named(reward, more)

    def ask(
        begin: int, end: int, seconds: float, some_of_many: bool
    ) -> list[float | Refusal] | Ended:
        rows = asked[0][begin:end], asked[1][begin:end]
        further = {name: values[begin:end] for name, values in named.items()}
        answer = process.judge(*rows, seconds, some_of_many, further, reward.options)
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


def look_at(path: str, import_seconds: float, options: tuple[str, ...] = ()) -> Look:
    """Return a reward function's signature and file; `options` are names of further arguments.

    Raises:
        ConfigError: it cannot be called with prompts, completions and options, or importing it
            ends its process or does not end; see `core/own_looks.py`.
    """
    return look_at_function(RewardProcess, path, import_seconds, options)


def look_of(reward: RewardConfig) -> Look:
    """Return the signature and the file of a reward's function.

    Raises:
        ConfigError: as of `look_at`; or the function has no such parameter for a column.
    """
    look = look_at(str(reward.function), reward.import_seconds, tuple(reward.options))
    _refuse_other_columns(reward, look)
    return look


def columns_of(reward: RewardConfig) -> tuple[str, ...]:
    """Return the columns of the data that a reward's function cannot do without.

    Raises:
        ConfigError: as of `look_of`.
    """
    required = [reward.columns.get(name, name) for name in look_of(reward).required]
    return tuple(dict.fromkeys([*required, *reward.columns.values()]))


def code_of(reward: RewardConfig) -> OwnCode:
    """Return what the rewards of a function depend on, with hashes.

    Raises:
        ConfigError: the function cannot be used, or a file that it depends on is not there.
    """
    return code_at(str(reward.function), look_of(reward), reward.depends_on)


def _refuse_other_columns(reward: RewardConfig, look: Look) -> None:
    """Refuse `columns` that name no parameter, or one that raydpo itself fills."""
    for name in reward.columns:
        if name in OWN_LISTS or (name not in look.names and ANY_NAME not in look.names):
            raise ConfigError(
                f"reward function {str(reward.function)!r} gets no column as `{name}`: it is "
                f"called with {look.call}",
                "`columns` has a column of the data for a parameter of the function",
                "correct the parameter's name, or take it out of `columns`",
            )
