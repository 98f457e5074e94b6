"""Inspect reward functions from the driver: whether they can be called, and their dependencies."""

from __future__ import annotations

from raydpo.core.own_code import OwnCode
from raydpo.core.own_looks import code_at
from raydpo.core.own_looks import look_at as look_at_function
from raydpo.core.own_process import Look
from raydpo.labeling.reward_process import RewardProcess


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
