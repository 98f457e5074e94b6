"""Reward functions as the driver sees them: whether they can be called, and what they depend on.

What comes in: import paths and declared files. What goes out: how a function is called, and
hashes. The user's code is imported in a process of its own: whatever it does there, the command
goes on or ends with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raydpo.errors import ConfigError
from raydpo.labeling.own_code import OwnCode, own_code
from raydpo.labeling.reward_process import Ended, Look, RewardProcess
from raydpo.labeling.signature import OWED


@dataclass(frozen=True)
class _Looked:
    look: Look
    hashes: dict[str, str]


#: Functions by import path and working directory. Importing takes half a second and more, and
#: every stage's key asks for it.
_looked: Final[dict[tuple[str, Path], _Looked]] = {}


def look_at(path: str, import_seconds: float) -> Look:
    """A reward function's signature and file.

    Args:
        path: `package.module:name`; modules beside the working directory are found too.
        import_seconds: how long importing it may take.

    Raises:
        ConfigError: there is no such module or attribute, it cannot be called with prompts and
            completions, or importing it ends its process or does not end.
    """
    known = _looked.get((path, Path.cwd()))
    if known is not None and _hashes(path, known.look) == known.hashes:
        return known.look
    process = RewardProcess(path, import_seconds)
    try:
        look = process.look()
    finally:
        process.close()
    if isinstance(look, Ended):
        raise ConfigError(
            f"reward function {path!r}: importing its module {look.how}",
            OWED,
            "mend that line: neither the module nor what it imports may end the process or hang; "
            "a slow one gets a longer `timeout_seconds`",
        )
    _looked[path, Path.cwd()] = _Looked(look, _hashes(path, look))
    return look


def code_of(path: str, import_seconds: float, depends_on: tuple[str, ...] = ()) -> OwnCode:
    """What the rewards of the function `path` depend on, with hashes.

    Raises:
        ConfigError: the function cannot be used, or a file that it depends on is not there.
    """
    return own_code(_module(path), look_at(path, import_seconds).file, depends_on)


def _hashes(path: str, look: Look) -> dict[str, str]:
    """Of the user's own code alone; none where it is no longer there to be read."""
    try:
        return own_code(_module(path), look.file, ()).hashes
    except ConfigError:
        return {}


def _module(path: str) -> str:
    return path.partition(":")[0]
