"""Adapt a reward function to the call that its signature asks for.

raydpo passes lists of equal length by name: the prompts, the completions, what else it knows of
them, and the columns of the prompts' source. If it cannot fill a parameter, the refusal names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from types import MappingProxyType
from typing import Any, Final

from raydpo.core.errors import ConfigError
from raydpo.core.own_functions import refuse_coroutines

PROMPTS: Final = "prompts"
COMPLETIONS: Final = "completions"
#: What raydpo knows of each completion beside the two texts.
COMPLETION_IDS: Final = "completion_ids"
FINISH_REASONS: Final = "finish_reasons"
MESSAGES: Final = "messages"
CANDIDATE_IDS: Final = "candidate_ids"
#: Lists that every reward function can ask for; a column of one of these names is not passed.
OWN_LISTS: Final = (
    PROMPTS,
    COMPLETIONS,
    COMPLETION_IDS,
    FINISH_REASONS,
    MESSAGES,
    CANDIDATE_IDS,
)
#: Stands among the names that a function takes for lists of any name (`**kwargs`).
ANY_NAME: Final = "**"
#: What raydpo passes to a reward function, and what the function must return.
OWED: Final = (
    "a reward function is `def reward(prompts, completions, **kwargs)`, called by these names with "
    "two lists of texts, and returns a list with one number (or None) for each completion"
)
_NAME_THEM: Final = "call its parameters `prompts` and `completions`, in any order"
_DATA: Final = (PROMPTS, COMPLETIONS)
_ANY_NUMBER: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_BY_NAME: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_BY_POSITION: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
#: Words in other names for prompts and for completions, in the singular.
_WORDS: Final = {
    PROMPTS: {"prompt", "query", "querie", "question", "instruction", "input", "p", "q", "x"},
    COMPLETIONS: {"completion", "response", "generation", "candidate", "output", "answer", "text"}
    | {"c", "r", "y"},
}


#: Lists of equal length by name, one value for each completion.
Lists = Mapping[str, list[Any]]
NO_LISTS: Final[Lists] = MappingProxyType({})
#: Arguments of a function that are the same in each call, by name.
Options = Mapping[str, Any]
NO_OPTIONS: Final[Options] = MappingProxyType({})


@dataclass(frozen=True)
class RewardCall:
    """A reward function with the arguments of its call.

    Attributes:
        function: the function as it was given.
        by_position: names of the lists that are passed by position, in order.
        by_name: names of the lists that are passed by name where they are there.
        columns: names of the lists that have to be columns of the data.
        takes_any: whether it takes lists of all names (`**kwargs`).
        defaults: parameters that keep their defaults unless a column has their name.
        options: further arguments by name, the same in each call.
    """

    function: Callable[..., Any]
    by_position: tuple[str, ...]
    by_name: tuple[str, ...]
    columns: tuple[str, ...]
    takes_any: bool
    defaults: tuple[str, ...]
    options: Options = field(default_factory=dict[str, Any])

    def __call__(self, prompts: list[str], completions: list[str], more: Lists = NO_LISTS) -> Any:
        """Return the function's result.

        Args:
            prompts: texts.
            completions: one for each prompt.
            more: further lists of that length, by name. A required column that is not among them
                becomes a list of None.
        """
        absent = {name: [None] * len(completions) for name in self.columns}
        lists = {**absent, **more, PROMPTS: prompts, COMPLETIONS: completions}
        positional = [lists.pop(name) for name in self.by_position]
        named = {n: v for n, v in lists.items() if self.takes_any or n in self.by_name}
        return self.function(*positional, **{**named, **self.options})

    def __str__(self) -> str:
        """Describe the call in words."""
        named = [name for name in self.by_name if name not in self.defaults]
        given = [*self.by_position, *(f"{name}=..." for name in (*named, *self.options))]
        call = f"({', '.join([*given, *(['**columns'] if self.takes_any else [])])})"
        if not self.defaults:
            return call
        return (
            f"{call}, and {', '.join(self.defaults)} from columns of these names, if there are any"
        )


def reward_call(
    function: Callable[..., Any], path: str, options: Options = NO_OPTIONS
) -> RewardCall:
    """Determine from its signature how a function is called.

    Args:
        function: the function as a person wrote it.
        path: `package.module:name`, for messages.
        options: arguments that are the same in each call, by name.

    Raises:
        ConfigError: it is a class or an asynchronous generator, takes no completions, or does not
            take an option.
    """
    if isinstance(function, RewardCall):
        return function
    _refuse_other_callables(function, path)
    parameters = _parameters(function, path)
    _refuse_other_options(function, path, parameters, options)
    parameters = [p for p in parameters if p.name not in options]
    required = [
        p
        for p in parameters
        if p.kind is Parameter.POSITIONAL_ONLY
        or (p.default is Parameter.empty and p.kind not in _ANY_NUMBER)
    ]
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    named = any(p.name in _DATA for p in parameters) or (takes_any and len(required) != 2)
    if not named:
        positional = _by_position(function, path, required)
    elif takes_any or any(p.name == COMPLETIONS for p in parameters):
        positional = tuple(p.name for p in required if p.kind is Parameter.POSITIONAL_ONLY)
    else:
        raise _refusal(function, path, "no parameter takes the completions", _NAME_THEM)
    columns = [p.name for p in required if p.name not in OWN_LISTS] if named else []
    rest = [p for p in parameters if p not in required and p.kind not in _ANY_NUMBER]
    by_name = [p.name for p in (*required, *rest) if p.name not in positional] if named else []
    return RewardCall(
        function,
        positional,
        tuple(by_name),
        tuple(columns),
        takes_any,
        tuple(p.name for p in rest if p.name not in OWN_LISTS),
        options,
    )


def _refuse_other_options(
    function: Callable[..., Any], path: str, parameters: list[Parameter], options: Options
) -> None:
    """Refuse options that the function does not take, or that raydpo itself passes."""
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        known = set(options)
    else:
        known = {p.name for p in parameters if p.kind in _BY_NAME}
    if unknown := sorted(options.keys() - known):
        names = ", ".join(sorted(known - set(OWN_LISTS))) or "none"
        why = f"it takes no option `{'`, `'.join(unknown)}`"
        raise _refusal(function, path, why, f"its further parameters are: {names}")
    if taken := sorted(options.keys() & set(OWN_LISTS)):
        why = f"raydpo itself passes `{'`, `'.join(taken)}`"
        raise _refusal(function, path, why, "take it out of `options`")


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
    refuse_coroutines(function, path, "reward function", OWED, awaited=True)


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
