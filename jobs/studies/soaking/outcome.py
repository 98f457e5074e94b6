"""Compare what a run left behind with an undisturbed one.

For two run directories, the module reports rows lost and doubled, and what is not equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from raydpo.core.run import read_manifest, read_quarantine, read_rows
from raydpo.core.storage import Folder

#: Stages with a table, in the order of the run, and what names a row of theirs.
_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "prompts": ("prompt_id",),
    "candidates": ("prompt_id", "candidate"),
    "scores": ("prompt_id", "candidate"),
    "preferences": ("group_id",),
    "reference": ("group_id",),
}
_FILES: Final = ("policy", "evaluation")


@dataclass(frozen=True)
class Left:
    """What a finished run holds.

    Attributes:
        fingerprints: content of each stage.
        weights: hashes of the policy's files of weights.
        rows: names of the rows of each table, with how often each stands there.
        rows_seen: all rows, refused ones included.
        damaged: files that do not have the hash that their manifest says.
    """

    fingerprints: dict[str, str]
    weights: dict[str, str]
    rows: dict[str, Counter[str]]
    rows_seen: int
    damaged: list[str] = field(default_factory=lambda: [])


def look(run: Folder) -> Left:
    """Read all that a finished run left.

    Raises:
        DataError, ManifestError: a file is damaged; it is named.
    """
    fingerprints: dict[str, str] = {}
    weights: dict[str, str] = {}
    rows: dict[str, Counter[str]] = {}
    damaged: list[str] = []
    seen = 0
    for stage in (*_TABLES, *_FILES):
        folder = run.child("round-000", stage)
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        hashes = {file["name"]: file["sha256"] for file in manifest["files"]}
        damaged += [f"{stage}/{n}" for n, known in hashes.items() if folder.sha256(n) != known]
        if stage in _TABLES:
            fingerprints[stage] = manifest["fingerprint"]
            names = [str([row[c] for c in _TABLES[stage]]) for row in read_rows(folder, manifest)]
            rows[stage] = Counter(names)
            seen += len(names) + sum(1 for _ in read_quarantine(folder, manifest))
        elif stage == "policy":
            fingerprints[stage] = manifest["fingerprint"]
            weights = {n: known for n, known in hashes.items() if n.endswith(".safetensors")}
    return Left(fingerprints, weights, rows, seen, damaged)


@dataclass(frozen=True)
class Verdict:
    """A run against the undisturbed one.

    Attributes:
        lost: rows that the undisturbed run has and this one has not.
        doubled: rows that stand there more often than in the undisturbed one.
        different: what is not equal, by name.
    """

    lost: int
    doubled: int
    different: list[str]

    @property
    def equal(self) -> bool:
        """Whether everything is as without faults."""
        return not (self.lost or self.doubled or self.different)


def compare(found: Left, undisturbed: Left) -> Verdict:
    """Compare what a run left with what the undisturbed one left."""
    lost = doubled = 0
    for stage, expected in undisturbed.rows.items():
        there = found.rows.get(stage, Counter())
        lost += (expected - there).total()
        doubled += (there - expected).total()
    different = [
        f"{stage}'s content"
        for stage, fingerprint in undisturbed.fingerprints.items()
        if found.fingerprints.get(stage) != fingerprint
    ]
    if found.weights != undisturbed.weights:
        different.append("the policy's weights")
    return Verdict(lost, doubled, different + [f"damaged: {name}" for name in found.damaged])
