"""Adapt a reward function to the call (prompts, completions) by the names in its signature.

If raydpo cannot fill a parameter, the refusal names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Final

from raydpo.core.errors import ConfigError
from raydpo.core.own_functions import refuse_coroutines

PROMPTS: Final = "prompts"
COMPLETIONS: Final = "completions"
#: What raydpo passes to a reward function, and what the function must return.
OWED: Final = (
    "a reward function is `def reward(prompts, completions, **kwargs)`, called by these names with "
    "two lists of texts, and returns a list with one number (or None) for each completion"
)
_NAME_THEM: Final = "call its parameters `prompts` and `completions`, in any order"
_DATA: Final = (PROMPTS, COMPLETIONS)
_ANY_NUMBER: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_BY_POSITION: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
#: Words in other names for prompts and for completions, in the singular.
_WORDS: Final = {
    PROMPTS: {"prompt", "query", "querie", "question", "instruction", "input", "p", "q", "x"},
    COMPLETIONS: {"completion", "response", "generation", "candidate", "output", "answer", "text"}
    | {"c", "r", "y"},
}


@dataclass(frozen=True)
class RewardCall:
    """A reward function with the arguments of its call.

    Attributes:
        function: the function as it was given.
        by_position: which of `prompts` and `completions` are passed by position, in order.
        by_name: which of them are passed by name.
        defaults: its other parameters, which keep their defaults.
    """

    function: Callable[..., Any]
    by_position: tuple[str, ...]
    by_name: tuple[str, ...]
    defaults: tuple[str, ...]

    def __call__(self, prompts: list[str], completions: list[str]) -> Any:
        """Return the function's result for these texts."""
        data = {PROMPTS: prompts, COMPLETIONS: completions}
        positional = (data[name] for name in self.by_position)
        return self.function(*positional, **{name: data[name] for name in self.by_name})

    def __str__(self) -> str:
        """Describe the call in words, with the parameters that keep their defaults."""
        given = ", ".join([*self.by_position, *(f"{name}=..." for name in self.by_name)])
        kept = f", which keeps its defaults of {', '.join(self.defaults)}" if self.defaults else ""
        return f"({given}){kept}"


def reward_call(function: Callable[..., Any], path: str) -> RewardCall:
    """Determine from its signature how a function is called.

    Args:
        function: the function as a person wrote it.
        path: `package.module:name`, for messages.

    Raises:
        ConfigError: it is a class or a coroutine function, or needs something other than prompts
            and completions.
    """
    if isinstance(function, RewardCall):
        return function
    _refuse_other_callables(function, path)
    parameters = _parameters(function, path)
    required = [
        p
        for p in parameters
        if p.kind is Parameter.POSITIONAL_ONLY
        or (p.default is Parameter.empty and p.kind not in _ANY_NUMBER)
    ]
    any_name = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    if any(p.name in _DATA for p in parameters) or (any_name and not required):
        positional, named = _by_name(function, path, parameters, required, any_name)
    else:
        positional, named = _by_position(function, path, required), ()
    given = (*required, *(p for p in parameters if p.kind in _ANY_NUMBER or p.name in named))
    return RewardCall(
        function, positional, named, tuple(p.name for p in parameters if p not in given)
    )


def _by_name(
    function: Callable[..., Any],
    path: str,
    parameters: list[Parameter],
    required: list[Parameter],
    any_name: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a function that names its data gets by position and by name."""
    others = [p.name for p in required if p.name not in _DATA]
    if others:
        raise _refusal(
            function,
            path,
            f"nothing is there to give to parameter `{'`, `'.join(others)}`",
            "columns of the data are not passed on: find what you need by the prompt inside the "
            "function, give the parameter a default, or call it `prompts` or `completions`",
        )
    if not any_name and not any(p.name == COMPLETIONS for p in parameters):
        raise _refusal(function, path, "no parameter takes the completions", _NAME_THEM)
    positional = tuple(p.name for p in required if p.kind is Parameter.POSITIONAL_ONLY)
    named = {p.name for p in parameters} if not any_name else set(_DATA)
    return positional, tuple(n for n in _DATA if n in named and n not in positional)


def _by_position(
    function: Callable[..., Any], path: str, required: list[Parameter]
) -> tuple[str, ...]:
    """Pass prompts and completions to two parameters of other names, if those names allow it."""
    if len(required) != 2 or any(p.kind not in _BY_POSITION for p in required):
        asked = ", ".join(f"`{p.name}`" for p in required) or "no parameter that is required"
        raise _refusal(function, path, f"it has {asked}: not prompts and completions", _NAME_THEM)
    for parameter, role in zip(required, _DATA, strict=True):
        if not _can_be(parameter.name, role):
            place = "first" if role == PROMPTS else "second"
            why = f"its {place} parameter `{parameter.name}` would be given the {role}"
            raise _refusal(function, path, why, _NAME_THEM)
    return _DATA


def _can_be(name: str, role: str) -> bool:
    """Return whether a parameter's name fits its role, or at least does not contradict it."""
    words = {word.rstrip("s") or word for word in name.lower().split("_")}
    [other] = set(_DATA) - {role}
    silent = len(name.strip("_")) <= 2
    return bool(words & _WORDS[role]) or (silent and not words & _WORDS[other])


def _refuse_other_callables(function: Callable[..., Any], path: str) -> None:
    if inspect.isclass(function):
        raise ConfigError(
            f"reward function {path!r} is a class",
            OWED,
            "name a function, or an instance of the class that is made in its module",
        )
    refuse_coroutines(function, path, "reward function", OWED)


def _parameters(function: Callable[..., Any], path: str) -> list[Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"reward function {path!r} is a {type(function).__name__} without a readable signature",
            OWED,
            "call it from a function of your own",
        ) from error


def _refusal(function: Callable[..., Any], path: str, why: str, way_out: str) -> ConfigError:
    signature = str(inspect.signature(function))
    shown = signature if len(signature) <= 100 else signature[:100] + " ..."
    return ConfigError(f"reward function {path!r} has the signature {shown}: {why}", OWED, way_out)
