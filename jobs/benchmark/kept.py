"""Results of a benchmark, each on disk as soon as it is measured.

A file of JSON lines that only grows. A benchmark that was interrupted finds what it has measured
with the same settings, and measures the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def source_hash(sources: Iterable[str]) -> str:
    """A hash of Python files, as a result depends on them.

    Args:
        sources: files, and folders with all below them, relative to the repository.
    """
    digest = hashlib.sha256()
    for source in sources:
        place = _ROOT / source
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class Kept:
    """The results in one file that were made with one set of settings.

    Args:
        path: the file; it and its folder are made when the first result is added.
        made_with: what a result depends on, as plain values: results of others are not seen.
    """

    def __init__(self, path: Path, made_with: dict[str, Any]) -> None:
        self.path = path
        self._made_with: dict[str, Any] = json.loads(json.dumps(made_with))
        self.results: dict[str, dict[str, Any]] = {
            entry["name"]: entry["result"]
            for entry in _entries(path)
            if entry["made_with"] == self._made_with
        }

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result, which is on disk when this returns; a later one of a name replaces it."""
        entry = {"name": name, "made_with": self._made_with, "result": result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as lines:
            # A line that a kill has cut must not swallow this one.
            lines.write(("\n" if _is_cut(self.path) else "") + json.dumps(entry) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.results[name] = result

    def found(self) -> str | None:
        """A line that says what an earlier run has left, if it left anything."""
        if not self.results:
            return None
        return (
            f"{len(self.results)} results of an earlier run are kept: {self.path} "
            "(delete it to measure all again)"
        )

    def finish(self) -> None:
        """Everything is measured and reported: the next run measures anew."""
        self.path.unlink(missing_ok=True)


def _entries(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file; none where it is not there."""
    if not path.exists():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the process was killed while it wrote this line
            continue
    return found


def _is_cut(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
