"""Paths in the configuration: what is on this machine is named from the root on.

What comes in: a path as a person wrote it, from the folder where the command runs. What goes
out: the same place for every process: Ray's workers run in folders of their own. URIs stay
as they are, and so do names of a hub.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator

#: `org/name`, or a name alone.
_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _absolute(path: str) -> str:
    if not path:
        raise ValueError("a path has at least one character")
    if "://" in path:
        return path
    # Unlike pathlib's, it leaves `~nobody` as it is where there is no such user.
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111


def _absolute_or_name(path: str) -> str:
    """What could be a name of a hub is a path where something of that name is here."""
    here = _absolute(path)
    return path if _HUB_NAME.fullmatch(path) and not os.path.lexists(here) else here


#: A file or folder of this machine, or a URI.
LocalPath = Annotated[str, AfterValidator(_absolute)]
#: A file, folder, glob or URI, or the name of something on a hub.
PathOrName = Annotated[str, AfterValidator(_absolute_or_name)]
