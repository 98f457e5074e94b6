"""Find the lines of the user's own files at which something went wrong.

They come from an exception, or from the text that faulthandler writes for a process that ends or
hangs. Installed packages, Python's library and raydpo are not the user's own.
"""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from functools import cache
from pathlib import Path
from typing import Final

import raydpo

#: Frames of the user's own files that a message shows.
_MOST_FRAMES: Final = 3
_LONGEST_LINE: Final = 100


def is_own(file: str) -> bool:
    """Whether a file is the user's own: neither installed, nor Python's, nor raydpo's."""
    path = Path(file)
    if file.startswith("<") or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _foreign_folders())


def own_lines(error: BaseException) -> list[str]:
    """The lines of the user's own files that an exception came through, the innermost last."""
    frames: dict[tuple[str, int | None], str] = {}
    for frame in traceback.extract_tb(error.__traceback__):
        if is_own(frame.filename):  # a comprehension is a frame of its own on the same line
            frames.setdefault((frame.filename, frame.lineno), frame.name)
    if isinstance(error, SyntaxError) and error.filename:
        frames[error.filename, error.lineno] = "<module>"
    lines = [_frame_line(file, line, name) for (file, line), name in frames.items()]
    return lines[-_MOST_FRAMES:]


def own_line_in_dump(dump: str) -> str | None:
    """Return the innermost line of the user's own code in a dump of faulthandler, if there is one.

    The dump begins with the running thread, and each thread with its innermost frame.
    """
    _, current, rest = dump.partition("Current thread ")
    text = rest + dump if current else dump
    for file, line, name in re.findall(r'File "([^"\n]+)", line (\d+) in (.+)', text):
        if is_own(file):
            return f"{file}:{line}, in {name}"
    return None


def _frame_line(file: str, line: int | None, function: str) -> str:
    code = linecache.getline(file, line or 0).strip()
    shown = code if len(code) <= _LONGEST_LINE else code[:_LONGEST_LINE] + " ..."
    return f"{file}:{line}, in {function}: {shown}"


@cache
def _foreign_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    python = {Path(path) for name in names if (path := sysconfig.get_path(name))}
    return (*python, Path(str(raydpo.__file__)).parent)
