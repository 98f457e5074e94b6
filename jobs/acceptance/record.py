"""Record results in one file that several runs extend.

The JSON file is complete at any moment. A result counts for the card, the versions and the source
that it was made with.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

#: A task with one of these is not run again by itself.
SETTLED = ("passed", "failed", "crashed")
#: The command fails where a task has one of these.
BAD = ("failed", "crashed", "timed out")


def stem(facts: dict[str, Any]) -> str:
    """Name of the page; that of a CPU is another than the benchmark's."""
    if facts["device"] == "cpu":
        return "acceptance-cpu"
    return "training-" + re.sub(r"[^a-z0-9]+", "-", facts["card"].lower()).strip("-")


def made_with(facts: dict[str, Any], small: bool, seed: int) -> dict[str, Any]:
    """What a result depends on."""
    names = ("card", "cards", "python", "cuda", "versions", "source")
    return {**{name: facts[name] for name in names}, "small": small, "seed": seed}


class Record:
    """The results of a card, on disk."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path = path
        self._key = key
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.results: dict[str, dict[str, Any]] = known.get("results", {})
        self.commands: list[str] = known.get("commands", [])

    @property
    def small(self) -> bool:
        """Whether shapes were small, so that times and memory say nothing about a card."""
        return self._key["small"]

    def settled(self, task: str) -> bool:
        """Whether a task has a result of this card, these versions and this source."""
        return self.current(task) and self.results[task]["status"] in SETTLED

    def current(self, task: str) -> bool:
        """Whether its result is of this card, these versions and this source."""
        return self.results.get(task, {}).get("made_with") == self._key

    @property
    def current_results(self) -> dict[str, dict[str, Any]]:
        """Results of this card, these versions and this source: no others compare with them."""
        return {name: result for name, result in self.results.items() if self.current(name)}

    def add(self, task: str, result: dict[str, Any]) -> None:
        """Keep a result, unless it only says that a settled task was left out."""
        if result["status"] == "left out" and self.settled(task):
            return
        self.results[task] = {**result, "made_with": self._key}
        self._write()

    def begin(self, command: str) -> None:
        """Note another run."""
        self.commands.append(command)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".json.tmp")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({"commands": self.commands, "results": self.results}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
