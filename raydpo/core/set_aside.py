"""Set finished work aside when other work replaces it; never delete it.

The files move to a folder beside the first. The module also lists what is set aside in a run.
Only `raydpo clean` deletes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from raydpo.core.errors import RunError
from raydpo.core.lock import locked
from raydpo.core.progress import logger
from raydpo.core.storage import Folder, folder_of

#: How the name of a folder goes on that was set aside: `policy.set-aside-20260131-235959`.
_NAME: Final = re.compile(r"[^/]+\.set-aside-\d{8}-\d{6}(-\d+)?")


@dataclass(frozen=True)
class SetAside:
    """A folder that was set aside.

    Attributes:
        folder: where it is.
        files: how many it holds.
        size_bytes: of all of them together.
    """

    folder: Folder
    files: int
    size_bytes: int

    def __str__(self) -> str:
        size = self.size_bytes / 1e6
        return f"{self.folder.uri}: {self.files} file(s), {size:,.1f} MB"


def set_aside(folder: Folder, names: Iterable[str] | None = None) -> Folder:
    """Move a folder, or the files `names` of it, into a new folder beside it; returns that one.

    A local folder is renamed. In an object store, files are copied before any is deleted.
    """
    target = _free_name(folder)
    if names is None:
        folder.move(target)
    else:
        for name in names:
            folder.move(target, name)
    logger.warning(
        "finished work is set aside in %s; `raydpo clean` with the run directory deletes it",
        target.uri,
    )
    return target


def is_set_aside(path: str) -> bool:
    """Whether a path, relative to its run directory, lies in what was set aside."""
    return any(_NAME.fullmatch(name) for name in path.split("/"))


def all_set_aside(run: Folder) -> list[SetAside]:
    """What is set aside in a run directory, by name."""
    found: dict[str, list[int]] = {}
    for path, size in run.files(recursive=True).items():
        names = path.split("/")[:-1]
        for depth, name in enumerate(names, start=1):
            if _NAME.fullmatch(name):
                found.setdefault("/".join(names[:depth]), []).append(size)
                break
    return [SetAside(run.child(name), len(found[name]), sum(found[name])) for name in sorted(found)]


def clean(path: str, dry_run: bool = False) -> list[SetAside]:
    """Delete what is set aside in a run directory; returns what it was.

    Args:
        path: the run directory.
        dry_run: delete nothing.

    Raises:
        RunError: there is no run under that path, or another process works in it.
    """
    run = folder_of(path)
    if not run.is_file("config.yaml"):
        raise RunError(
            f"{run.uri} is not a run directory",
            "a run directory holds config.yaml and the folders of its rounds",
            "give the folder that the run's log names, such as runs/demo",
        )
    if dry_run:
        return all_set_aside(run)
    with locked(run):
        found = all_set_aside(run)
        for one in found:
            one.folder.delete()
    return found


def _free_name(folder: Folder) -> Folder:
    """A new folder beside this one, named after it and the time (UTC)."""
    name = f"{folder.uri.rstrip('/')}.set-aside-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    target, number = Folder(name), 1
    while target.exists():
        number += 1
        target = Folder(f"{name}-{number}")
    return target
