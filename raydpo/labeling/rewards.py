"""Call a Python reward function in the process that imported it: see `reward_process.py`.

For each completion, the function at the import path `package.module:name` gives a reward. Otherwise
the module gives the reason why there is none; it never uses a default. It imports no torch, no
Arrow and no Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydpo.core.errors import DataError
from raydpo.core.own_calls import batch_or_rows
from raydpo.core.own_functions import import_function, raised
from raydpo.labeling.signature import (
    NO_LISTS,
    NO_OPTIONS,
    OWED,
    Lists,
    Options,
    RewardCall,
    reward_call,
)


@dataclass(frozen=True)
class Refusal:
    """The reason why a completion has no reward.

    Attributes:
        reason: the reason in words.
        ended_process: whether the function ended its process, or the process was ended, on it.
        does_not_apply: whether the function returned None. Where other rewards of a sum have a
            value, the sum is theirs.
    """

    reason: str
    ended_process: bool = False
    does_not_apply: bool = False


@dataclass(frozen=True)
class Note:
    """What a scorer says beside a value: its words, and the bounds of a 95 % interval."""

    rationale: str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Judged:
    """Rewards or refusals in the order of the completions, and how many texts were cut.

    Attributes:
        notes: one for each completion, or none at all.
        counts: further counts for the manifest.
        sums: the same for what is no whole number.
    """

    values: list[float | Refusal]
    truncated: int = 0
    notes: list[Note] = field(default_factory=list[Note])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    sums: dict[str, float] = field(default_factory=dict[str, float])


def resolve_function(path: str, options: Options = NO_OPTIONS) -> RewardCall:
    """Import a reward function; the result is called with (prompts, completions, more).

    Args:
        path: `package.module:name`; modules in the working directory are found too.
        options: arguments of the function that are the same in each call, by name.

    Raises:
        ConfigError: there is no such function, or it cannot be called with prompts, completions
            and these options.
    """
    function = import_function(path, "reward function", OWED, [str(Path.cwd())], awaited=True)
    return reward_call(function, path, options)


def judge_with_function(
    function: Callable[..., Any],
    path: str,
    prompts: list[str],
    completions: list[str],
    some_of_many: bool = False,
    more: Lists = NO_LISTS,
) -> Judged:
    """Call the function on all completions; if it raises, call it on each of them alone.

    The result of an `async def` is awaited in an event loop of its own.

    Args:
        function: the function as a person wrote it.
        path: `package.module:name`, for messages.
        prompts: texts.
        completions: one for each prompt.
        some_of_many: whether there are others; then it is no error if it raises for all of these.
        more: further lists of that length by name, which the function can ask for.

    Raises:
        ConfigError: the function cannot be called with prompts and completions.
        DataError: it raises for every completion, or its result is not a list of that length.
    """
    call = reward_call(function, path)

    def judge(begin: int, end: int) -> list[float | Refusal]:
        further = {name: values[begin:end] for name, values in more.items()}
        values = _awaited(call(prompts[begin:end], completions[begin:end], further))
        return [reward_or_refusal(value) for value in _checked(values, path, end - begin)]

    def failed(error: BaseException) -> DataError:
        return DataError(
            f"reward function {path!r} raised {raised(error)}",
            OWED,
            "fix that line; if a completion has no reward, return None for it. "
            "`raydpo check CONFIG` calls the function on two rows",
        )

    return Judged(
        batch_or_rows(
            judge,
            len(completions),
            lambda how: Refusal(f"the reward function raised {how}"),
            None if some_of_many else failed,
        )
    )


def _awaited(result: Any) -> Any:
    """Return what a function returned, or what its coroutine does."""
    if not inspect.isawaitable(result):
        return result

    async def ended() -> Any:
        return await result

    return asyncio.run(ended())


def reward_or_refusal(value: Any) -> float | Refusal:
    """Convert a finite number to a float, and anything else to a reason."""
    if value is None:
        return Refusal("the reward is None, not a number", does_not_apply=True)
    if isinstance(value, str | bytes):
        return Refusal(f"the reward is {value!r}, not a number")
    try:  # arrays and tensors of one number have `item`
        reward = float(value.item() if hasattr(value, "item") else value)
    except Exception:  # noqa: BLE001 - a user's type may raise anything
        return Refusal(f"the reward is a {type(value).__name__}, not a number")
    return reward if math.isfinite(reward) else Refusal(f"the reward is {reward}")


def _checked(result: Any, path: str, count: int) -> list[Any]:
    try:
        values = list(result)
    except TypeError:
        values = None
    unordered = isinstance(result, str | bytes | dict | set | frozenset)
    if values is None or unordered or len(values) != count:
        found = f"{len(values)} values" if values is not None else "no list"
        raise DataError(
            f"reward function {path!r} returned {found} ({type(result).__name__}) "
            f"for {count} completions",
            OWED,
            "let it return a list of numbers, in the order of the completions",
        )
    return values
