"""Rewards by a Python function, in the process that imports it: see `reward_process.py`.

What comes in: the import path `package.module:name` of a function, prompts and their
completions. What goes out: a reward for each completion, or the reason why there is none;
never a default. No torch, no Arrow and no Ray are imported.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError, DataError
from raydpo.labeling.own_frames import own_lines
from raydpo.labeling.signature import OWED, RewardCall, reward_call

_RULE = "a reward function is given as `package.module:name`"
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Refusal:
    """Why a completion has no reward.

    Attributes:
        reason: in words.
        ended_process: the function never came back from it: it ended its process, or was ended.
    """

    reason: str
    ended_process: bool = False


@dataclass(frozen=True)
class Judged:
    """Rewards or refusals, in the order of the completions; how many texts were cut."""

    values: list[float | Refusal]
    truncated: int = 0


def resolve_function(path: str) -> RewardCall:
    """Import a reward function; what comes back is called with (prompts, completions).

    Args:
        path: `package.module:name`; modules beside the working directory are found too.

    Raises:
        ConfigError: there is no such module or attribute, or it cannot be called with
            prompts and completions.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(
            f"labeling.reward.function {path!r}",
            _RULE,
            "write for example `my_rewards:brevity` for `def brevity` in my_rewards.py",
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    _refuse_standard_library(path, module_name)
    module = _imported(path, module_name)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            raise ConfigError(
                f"labeling.reward.function {path!r}: {module_name} has no {name!r}",
                _RULE,
                f"its public names are {_public_names(module)}",
            )
        function = getattr(function, part)
    if not callable(function):
        raise ConfigError(
            f"labeling.reward.function {path!r} is a {type(function).__name__}",
            OWED,
            f"name a function of {module_name}",
        )
    if inspect.isroutine(function):
        _refuse_standard_library(path, str(function.__module__))
    return reward_call(function, path)


def judge_with_function(
    function: Callable[..., Any],
    path: str,
    prompts: list[str],
    completions: list[str],
    some_of_many: bool = False,
) -> Judged:
    """Call the function on all completions; where it raises, on each of them alone.

    Args:
        function: as a person wrote it.
        path: `package.module:name`, for messages.
        prompts: texts.
        completions: one for each prompt.
        some_of_many: there are others; that it raises for each of these is then no error.

    Raises:
        ConfigError: it cannot be called with prompts and completions.
        DataError: it raises for every completion, or its result is not a list of that length.
    """
    call = reward_call(function, path)
    if not completions:  # of a part whose prompts were all refused
        return Judged([])
    try:
        values = _checked(call(prompts, completions), path, len(prompts))
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        return _one_by_one(call, path, prompts, completions, None if some_of_many else error)
    return Judged([reward_or_refusal(value) for value in values])


def reward_or_refusal(value: Any) -> float | Refusal:
    """A finite number as a float; anything else as a reason."""
    if value is None or isinstance(value, str | bytes):
        return Refusal(f"the reward is {value!r}, not a number")
    try:  # arrays and tensors of one number have `item`
        reward = float(value.item() if hasattr(value, "item") else value)
    except Exception:  # noqa: BLE001 - a type of the user's may raise anything
        return Refusal(f"the reward is a {type(value).__name__}, not a number")
    return reward if math.isfinite(reward) else Refusal(f"the reward is {reward}")


def _refuse_standard_library(path: str, module_name: str) -> None:
    """Stop at functions of Python's own library: what they do to a text is no reward of it."""
    if module_name.partition(".")[0] in (*sys.stdlib_module_names, *sys.builtin_module_names):
        raise ConfigError(
            f"reward function {path!r} is of Python's own library ({module_name})",
            OWED,
            "name a function of your own, which may call it",
        )


def _imported(path: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(missing + ".")
        raise ConfigError(
            f"labeling.reward.function {path!r}: there is no module {missing!r}",
            _RULE,
            "check the name; the module is installed, or stands in the folder that the command "
            "runs in"
            if own
            else f"{module_name} imports it: install it",
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"labeling.reward.function {path!r}: importing {module_name} fails: "
            + _described(error),
            "the module can be imported",
            f"mend that line, and try `python -c 'import {module_name}'`",
        ) from error


def _public_names(module: Any) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
    return ", ".join(sorted(names)) or "none"


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


def _one_by_one(
    call: RewardCall,
    path: str,
    prompts: list[str],
    completions: list[str],
    first: BaseException | None,
) -> Judged:
    """Tell the completions that the function fails on from the others.

    `first` is raised where it fails on all of them.
    """
    values: list[float | Refusal] = []
    failed = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        try:
            (value,) = _checked(call([prompt], [completion]), path, 1)
            values.append(reward_or_refusal(value))
        except DataError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
            failed += 1
            values.append(Refusal(f"the reward function raised {_in_one_line(error)}"))
    if first is not None and failed == len(prompts):
        raise DataError(
            f"reward function {path!r} raised {_described(first)}",
            OWED,
            "mend that line; where a completion has no reward, return None for it. "
            "`raydpo check CONFIG` calls the function on two rows",
        ) from first
    return Judged(values)


def _described(error: BaseException) -> str:
    """An exception with the lines of the user's own files that it came through."""
    message = str(error).strip()
    shown = message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + " ..."
    lines = [f"{type(error).__name__}: {shown}".replace("\n", " "), *own_lines(error)]
    return "\n    ".join(lines)


def _in_one_line(error: BaseException) -> str:
    """An exception with the innermost line of the user's own, without its code."""
    where = [line.partition(": ")[0] for line in own_lines(error)[-1:]]
    return " at ".join([_described(error).partition("\n")[0], *where])
