"""Inspect functions of the user's own from the driver: their calls, and their dependencies.

A separate process imports the user's code. Whatever that code does there, the command continues
or ends with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raydpo.core.errors import ConfigError
from raydpo.core.own_code import OwnCode, own_code
from raydpo.core.own_process import Ended, Look, OwnProcess


@dataclass(frozen=True)
class _Looked:
    look: Look
    hashes: dict[str, str]


_Key = tuple[type[OwnProcess], str, tuple[str, ...], Path]
#: Functions by kind, import path, options and working directory. An import takes half a second or
#: more, and every stage's key asks for it.
_looked: Final[dict[_Key, _Looked]] = {}


def look_at(
    kind: type[OwnProcess], path: str, import_seconds: float, options: tuple[str, ...] = ()
) -> Look:
    """Return a function's signature and file.

    Args:
        kind: the process that such functions run in.
        path: `package.module:name`; modules in the working directory are found too.
        import_seconds: how long the import may take.
        options: names of further arguments that it is called with.

    Raises:
        ConfigError: there is no such module or attribute, it cannot be called as such functions
            are, or importing it ends its process or does not end.
    """
    key = (kind, path, options, Path.cwd())
    known = _looked.get(key)
    if known is not None and _hashes(path, known.look) == known.hashes:
        return known.look
    process = kind(path, import_seconds, options=options)
    try:
        look = process.look()
    finally:
        process.close()
    if isinstance(look, Ended):
        raise ConfigError(
            f"{kind.what} {path!r}: importing its module {look.how}",
            kind.owed,
            "fix that line: neither the module nor what it imports may end the process or hang; "
            "a slow one gets a longer `timeout_seconds`",
        )
    _looked[key] = _Looked(look, _hashes(path, look))
    return look


def code_at(path: str, look: Look, depends_on: tuple[str, ...] = ()) -> OwnCode:
    """Return what the results of a function depend on, with hashes.

    Raises:
        ConfigError: a file that it depends on is not there.
    """
    return own_code(path.partition(":")[0], look.file, depends_on)


def _hashes(path: str, look: Look) -> dict[str, str]:
    """Return hashes of only the user's own code; none if it can no longer be read."""
    try:
        return code_at(path, look).hashes
    except ConfigError:
        return {}
