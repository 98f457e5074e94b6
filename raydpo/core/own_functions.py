"""Load functions of the user's own that a configuration names as `package.module:name`.

From such a path and the names of the values that raydpo can pass, the module returns the function
and the names to call it by. It imports no torch, no Arrow and no Ray: processes that run reward
functions import it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from inspect import Parameter
from pathlib import Path
from typing import Any, Final

from raydpo.core.errors import ConfigError
from raydpo.core.own_frames import own_lines

_RULE: Final = "it is given as `package.module:name`"
_LONGEST_MESSAGE: Final = 300
_ANY_NUMBER: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def search_path() -> tuple[str, ...]:
    """Folders in which this process finds modules, for workers, which run in other folders."""
    return (*filter(None, sys.path), str(Path.cwd()))


def import_function(
    path: str, what: str, owed: str, search: Iterable[str], awaited: bool = False
) -> Callable[..., Any]:
    """Import a function.

    Args:
        path: `package.module:name`.
        what: what it is, for messages: "objective function".
        owed: what such a function takes and returns, for messages.
        search: folders that its module is looked for in, after Python's own.
        awaited: whether its caller awaits coroutines, so that it may be `async def`.

    Raises:
        ConfigError: importing raises, there is no such function, it is something else, nothing
            would await it, or it is of Python's own library.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(
            f"{what} {path!r}",
            _RULE,
            "write for example `my_functions:mine` for `def mine` in my_functions.py",
        )
    sys.path += [folder for folder in search if folder not in sys.path]
    _refuse_standard_library(module_name, path, what, owed)
    module = _imported(module_name, path, what)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{what} {path!r}: {module_name} has no {name!r}",
                _RULE,
                f"its public names are {_public_names(module)}",
            )
        found = getattr(found, part)
    if not callable(found) or inspect.isclass(found):
        raise ConfigError(
            f"{what} {path!r} is a {type(found).__name__}",
            owed,
            f"name a function of {module_name}",
        )
    refuse_coroutines(found, path, what, owed, awaited)
    if inspect.isroutine(found):
        _refuse_standard_library(str(found.__module__), path, what, owed)
    return found


def refuse_coroutines(
    function: Callable[..., Any], path: str, what: str, owed: str, awaited: bool = False
) -> None:
    """Refuse `async def` whose lines would never run.

    Args:
        function: a function, or an object with `__call__`.
        path: `package.module:name`, for messages.
        what: what it is, for messages: "objective function".
        owed: what such a function takes and returns, for messages.
        awaited: whether its caller awaits coroutines; asynchronous generators are refused anyway.

    Raises:
        ConfigError: it is a coroutine function that nothing awaits, or an asynchronous generator
            function.
    """
    both = (function, getattr(type(function), "__call__", None))  # noqa: B004 - its own code
    if any(map(inspect.isasyncgenfunction, both)):
        kind, way_out = "an asynchronous generator", "let it return its values instead of yielding"
    elif any(map(inspect.iscoroutinefunction, both)) and not awaited:
        kind, way_out = "a coroutine function", "write it with `def`, and call `asyncio.run` in it"
    else:
        return
    raise ConfigError(
        f"{what} {path!r} is {kind} (`async def`)", f"raydpo does not await it; {owed}", way_out
    )


def _refuse_standard_library(module_name: str, path: str, what: str, owed: str) -> None:
    """Refuse functions of Python's own library: what they do is not what raydpo asks for."""
    if module_name.partition(".")[0] in (*sys.stdlib_module_names, *sys.builtin_module_names):
        raise ConfigError(
            f"{what} {path!r} is of Python's own library ({module_name})",
            owed,
            "name a function of your own, which may call it",
        )


def _imported(module_name: str, path: str, what: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(missing + ".")
        raise ConfigError(
            f"{what} {path!r}: there is no module {missing!r}",
            _RULE,
            "check the name; the module is installed, or stands in the folder that the command "
            "runs in"
            if own
            else f"{module_name} imports it: install it",
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{what} {path!r}: importing {module_name} fails: {raised(error)}",
            "the module can be imported",
            f"correct that line, and try `python -c 'import {module_name}'`",
        ) from error


def _public_names(module: Any) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
    return ", ".join(sorted(names)) or "none"


def taken_names(
    function: Callable[..., Any],
    path: str,
    what: str,
    owed: str,
    given: Collection[str],
    options: Collection[str] = (),
) -> tuple[str, ...]:
    """Which of `given` a function takes by name, in their order.

    Args:
        function: as it was written.
        path: for messages, as of `import_function`.
        what: likewise.
        owed: likewise.
        given: names of what it may be given.
        options: names of what it is given in any case.

    Raises:
        ConfigError: it asks for something that is not there, or does not take an option.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters if p.kind not in (*_ANY_NUMBER, Parameter.POSITIONAL_ONLY)}
    there = known & {*given, *options}
    missing = [
        p.name
        for p in parameters
        if p.default is Parameter.empty and p.kind not in _ANY_NUMBER and p.name not in there
    ]
    unread = [] if takes_any else sorted(set(options) - known)
    where = f"{what} {path!r}{inspect.signature(function)}"
    if missing:
        raise ConfigError(
            f"{where}: nothing is there for its parameter `{'`, `'.join(missing)}`",
            owed,
            "add it to `options` where the section has them, or give it a default",
        )
    if unread:
        raise ConfigError(
            f"{where} takes no option `{'`, `'.join(unread)}`",
            "each of `options` is a parameter of the function",
            "take it out, or add the parameter",
        )
    return tuple(name for name in given if name in known or takes_any)


def raised(error: BaseException) -> str:
    """What was raised, with the lines of the user's own files that it came through."""
    message = str(error).strip()
    shown = message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + " ..."
    lines = [f"{type(error).__name__}: {shown}".replace("\n", " "), *own_lines(error)]
    return "\n    ".join(lines)
