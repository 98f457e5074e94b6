"""Rewards by a Python function.

What comes in: the import path `package.module:name` of a function, prompts and their
completions. What goes out: a reward for each completion, or the reason why there is none;
never a default. No torch and no Ray are imported.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError, DataError
from raydpo.storage import sha256

#: (prompts, completions) -> rewards, lists of equal length. What it returns is checked.
RewardFunction = Callable[[list[str], list[str]], Any]

_RULE = "a reward function is given as `package.module:name`"


@dataclass(frozen=True)
class Refusal:
    """Why a completion has no reward."""

    reason: str


@dataclass(frozen=True)
class Judged:
    """Rewards or refusals, in the order of the completions; how many texts were cut."""

    values: list[float | Refusal]
    truncated: int = 0


def resolve_function(path: str) -> RewardFunction:
    """Import a reward function.

    Args:
        path: `package.module:name`; modules beside the working directory are found too.

    Raises:
        ConfigError: there is no such module or attribute, or it cannot be called.
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
            "it is called with (prompts, completions) and returns a list of numbers",
            f"name a function of {module_name}",
        )
    return function


def forget_module(path: str) -> None:
    """Let the next `resolve_function` read the module that `path` names from its file again."""
    sys.modules.pop(path.partition(":")[0], None)
    importlib.invalidate_caches()


def source_fingerprint(path: str) -> str:
    """Hash of the source of the module that `path` names; what that imports is not seen."""
    resolve_function(path)
    file = sys.modules[path.partition(":")[0]].__file__
    return sha256(Path(file).read_bytes() if file else path.encode())


def judge_with_function(
    function: RewardFunction, path: str, prompts: list[str], completions: list[str]
) -> Judged:
    """Call the function on all completions; where it raises, on each of them alone.

    Raises:
        DataError: it raises for every completion, or its result is not a list of that length.
    """
    if not completions:  # of a part whose prompts were all refused
        return Judged([])
    try:
        values = _checked(function(prompts, completions), path, len(prompts))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        return _one_by_one(function, path, prompts, completions, error)
    return Judged([reward_or_refusal(value) for value in values])


def reward_or_refusal(value: Any) -> float | Refusal:
    """A finite number as a float; anything else as a reason."""
    if value is None or isinstance(value, str | bytes):
        return Refusal(f"the reward is {value!r}, not a number")
    try:
        reward = float(value)
    except (TypeError, ValueError):
        return Refusal(f"the reward is a {type(value).__name__}, not a number")
    return reward if math.isfinite(reward) else Refusal(f"the reward is {reward}")


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
    except Exception as error:
        raise ConfigError(
            f"labeling.reward.function {path!r}: importing {module_name} fails: "
            f"{type(error).__name__}: {error}",
            "the module can be imported",
            f"try `python -c 'import {module_name}'`",
        ) from error


def _public_names(module: Any) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
    return ", ".join(sorted(names)) or "none"


def _checked(result: Any, path: str, count: int) -> list[Any]:
    try:
        values = list(result)
    except TypeError:
        values = None
    if values is None or isinstance(result, str | dict) or len(values) != count:
        found = f"{len(values)} values" if values is not None else "no list"
        raise DataError(
            f"reward function {path!r} returned {found} ({type(result).__name__}) "
            f"for {count} completions",
            "it returns a list with one number for each completion, in their order",
            "mend the function",
        )
    return values


def _one_by_one(
    function: RewardFunction,
    path: str,
    prompts: list[str],
    completions: list[str],
    first: Exception,
) -> Judged:
    """Tell the completions that the function fails on from the others."""
    values: list[float | Refusal] = []
    failed = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        try:
            (value,) = _checked(function([prompt], [completion]), path, 1)
            values.append(reward_or_refusal(value))
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything
            failed += 1
            values.append(Refusal(f"the reward function raised {type(error).__name__}: {error}"))
    if failed == len(prompts):
        raise DataError(
            f"reward function {path!r} raised {type(first).__name__}: {first}",
            f"it gives a reward to at least one of {failed} completions",
            "mend the function, and try it on a few completions in a Python shell",
        ) from first
    return Judged(values)
