"""Make paths in the configuration absolute.

A person writes a path relative to the folder where the command runs. Ray's workers run in other
folders, so the same path must name the same place for every process. URIs and hub names stay
unchanged.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator

#: `org/name`, or a name alone.
_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Bytes that Linux allows for a path, and for each name in it.
_LONGEST_PATH: Final = 4095
_LONGEST_NAME: Final = 255


def _absolute(path: str) -> str:
    if not path:
        raise ValueError("a path has at least one character")
    if "://" in path:
        return path
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(
            f"a path has at most {_LONGEST_PATH} bytes, and each name in it at most "
            f"{_LONGEST_NAME}: this one has {len(os.fsencode(path))}, with a name of {longest}"
        )
    # Unlike pathlib's function, this one leaves `~nobody` unchanged if there is no such user.
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111


def _absolute_or_name(path: str) -> str:
    """Treat a possible hub name as a path if a file or folder of that name exists here."""
    here = _absolute(path)
    return path if _HUB_NAME.fullmatch(path) and not os.path.lexists(here) else here


#: A file or folder on this machine, or a URI.
LocalPath = Annotated[str, AfterValidator(_absolute)]
#: A file, folder, glob or URI, or the name of a model or dataset on a hub.
PathOrName = Annotated[str, AfterValidator(_absolute_or_name)]
