"""The results of a soak so far, in two files that only grow, and their tables.

Results and faults become lines in results.jsonl and faults.jsonl, and Markdown.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_HEAD: Final = ("storage", "runs", "attempts", "faults", "rows", "lost", "doubled", "equal")
_FAULT_HEAD: Final = (
    "fault",
    "storage",
    "injected",
    "runs",
    "rows of these runs",
    "lost",
    "doubled",
    "equal",
)


@dataclass
class Result:
    """One run.

    Attributes:
        storage: where it lay.
        seed, number: what its faults were drawn by.
        job: what was run.
        attempts: how often the command was given.
        faults: names of what was shown.
        refused: files whose damage was named in an error, and which were put right by hand.
        made_again: files whose damage went away by itself.
        unread: files whose damage nobody read; they were put right by hand.
        left_over: processes that outlived their driver by half a minute.
        lost, doubled, different: against the undisturbed run.
        rows: that the run accounts for.
        seconds: of all attempts.
        commit: of raydpo.
        most_faults: that an attempt could have.
        draws: how `draw_faults` chose them.
    """

    storage: str
    seed: int
    number: int
    job: str = ""
    attempts: int = 0
    faults: list[str] = field(default_factory=lambda: [])
    refused: list[str] = field(default_factory=lambda: [])
    made_again: list[str] = field(default_factory=lambda: [])
    unread: list[str] = field(default_factory=lambda: [])
    left_over: list[str] = field(default_factory=lambda: [])
    lost: int = 0
    doubled: int = 0
    different: list[str] = field(default_factory=lambda: [])
    rows: int = 0
    seconds: float = 0.0
    commit: str = ""
    most_faults: int = 8
    draws: int = 1

    @property
    def equal(self) -> bool:
        """Whether it ended as the undisturbed run."""
        return not (self.lost or self.doubled or self.different)


def append(file: Path, entry: dict[str, Any]) -> None:
    """Add one line, which is there when this returns."""
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def read_results(file: Path) -> list[Result]:
    """All lines of results.jsonl."""
    return [Result(**entry) for entry in read_entries(file)]


def read_entries(file: Path) -> list[dict[str, Any]]:
    """All lines of a file; none where it is not there."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tables(results: list[Result]) -> list[str]:
    """Markdown: a row for each storage, and one for each fault and storage."""
    lines = [_line(_HEAD), _line(["---"] + ["---:"] * (len(_HEAD) - 1))]
    for storage in dict.fromkeys(result.storage for result in results):
        own = [result for result in results if result.storage == storage]
        attempts, faults = sum(r.attempts for r in own), sum(len(r.faults) for r in own)
        lines.append(_line([storage, len(own), attempts, faults, *_sums(own)]))
    lines += ["", _line(_FAULT_HEAD), _line(["---"] * 2 + ["---:"] * (len(_FAULT_HEAD) - 2))]
    shown = Counter((fault, result.storage) for result in results for fault in result.faults)
    for (fault, storage), count in sorted(shown.items()):
        own = [r for r in results if r.storage == storage and fault in r.faults]
        lines.append(_line([fault, storage, count, len(own), *_sums(own)]))
    damage = {
        "made again": sum(len(result.made_again) for result in results),
        "refused by name": sum(len(result.refused) for result in results),
        "not read": sum(len(result.unread) for result in results),
    }
    lines += ["", "Flipped bytes: " + ", ".join(f"{k} {v}" for k, v in damage.items()) + "."]
    outlived = sum(len(result.left_over) for result in results)
    return [*lines, f"Processes that outlived their driver by half a minute: {outlived}."]


def _sums(results: list[Result]) -> list[int]:
    """Rows, lost, doubled, and how many runs are equal."""
    return [
        sum(r.rows for r in results),
        sum(r.lost for r in results),
        sum(r.doubled for r in results),
        sum(r.equal for r in results),
    ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
