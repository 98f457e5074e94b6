"""Preference groups for training: random access to a table larger than memory.

What comes in: finished tables. What goes out: a memory-mapped Arrow file on this
machine's disk and `Group`s by number. Only the lengths are held in memory.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydpo.errors import DataError
from raydpo.tables import Row

_ROWS_PER_BATCH: Final = 512
_PAIR = pa.struct([("chosen", pa.int32()), ("rejected", pa.int32()), ("weight", pa.float32())])
_SCHEMA: Final = pa.schema(
    [
        ("group_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completions", pa.list_(pa.list_(pa.int32()))),
        ("pairs", pa.list_(_PAIR)),
        ("reference_token_logps", pa.list_(pa.list_(pa.float32()))),
    ]
)


@dataclass(frozen=True)
class Group:
    """One prompt, its K completions, the pairs over them, the reference's log-probs.

    Supervised examples are groups with one completion and neither pairs nor reference.
    """

    group_id: str
    prompt_ids: list[int]
    completions: list[list[int]]
    pairs: list[tuple[int, int, float]]
    reference_token_logps: list[list[float]] | None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: prompt and one completion."""
        return len(self.prompt_ids) + max(len(c) for c in self.completions)


@dataclass(frozen=True)
class GroupSizes:
    """What the composition of steps needs to know of all groups, as arrays of length N.

    Attributes:
        sequences: completions of the group.
        longest: tokens of its longest sequence, prompt included.
        tokens: tokens of all its sequences, the prompt counted with each.
        targets: completion tokens.
        pair_weight: sum of the weights of its pairs.
    """

    sequences: npt.NDArray[np.int32]
    longest: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    pair_weight: npt.NDArray[np.float64]


class GroupDataset:
    """Groups by number, read from a memory-mapped Arrow file."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        counts = [
            self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)
        ]
        self._ends: list[int] = np.cumsum(counts).tolist() if counts else []
        self.sizes = _sizes(self._reader)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Group:
        batch = bisect.bisect_right(self._ends, index)
        start = self._ends[batch - 1] if batch else 0
        row = self._reader.get_batch(batch).slice(index - start, 1).to_pylist()[0]
        pairs = [(p["chosen"], p["rejected"], p["weight"]) for p in row.pop("pairs") or []]
        return Group(pairs=pairs, **row)


def write_groups(rows: Iterable[Row], key: str) -> Path:
    """Write group rows to a local Arrow file, once per `key` and machine.

    Processes that write the same key at the same time leave one whole file.
    """
    folder = Path(tempfile.gettempdir()) / f"raydpo-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"groups-{key[:32]}.arrow"
    if path.exists():
        return path
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    with pa.ipc.new_file(partial, _SCHEMA) as writer:
        for chunk in _chunks(rows):
            writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=_SCHEMA))
    Path(partial).replace(path)
    return path


def joined_rows(
    preferences: Iterable[Row], reference: Iterable[Row], keep: Callable[[str], bool]
) -> Iterator[Row]:
    """Preference rows with their reference log-probs, which stand in the same order.

    Args:
        preferences: rows of the preferences table.
        reference: rows of the reference table.
        keep: given a prompt's id, whether its groups are trained on.

    Raises:
        DataError: a row has no reference, or one of another length; it is named.
    """
    scored = iter(reference)
    for row in preferences:
        logps = next(scored, None)
        if logps is None or logps["group_id"] != row["group_id"]:
            raise DataError(
                f"group {row['group_id']!r} has no reference log-probabilities",
                "the reference table has the groups of the preferences, in their order",
                "delete the round's `reference` folder and run the same command again",
            )
        lengths = [len(c) for c in row["completions"]]
        if [len(values) for values in logps["reference_token_logps"]] != lengths:
            raise DataError(
                f"group {row['group_id']!r} has reference log-probabilities of other lengths",
                "there is one for each completion token",
                "delete the round's `reference` folder and run the same command again",
            )
        if keep(row["prompt_id"]):
            yield _group_row(row, logps["reference_token_logps"])


def example_rows(examples: Iterable[Row]) -> Iterator[Row]:
    """Supervised examples as groups with one completion; the first token is never a target."""
    for row in examples:
        start = max(1, row["prompt_tokens"])
        yield {
            "group_id": row["example_id"],
            "prompt_ids": row["token_ids"][:start],
            "completions": [row["token_ids"][start:]],
            "pairs": [],
            "reference_token_logps": None,
        }


def _group_row(row: Row, reference_token_logps: list[list[float]]) -> Row:
    return {
        "group_id": row["group_id"],
        "prompt_ids": row["prompt_ids"],
        "completions": row["completions"],
        "pairs": row["pairs"],
        "reference_token_logps": reference_token_logps,
    }


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_PER_BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _sizes(reader: Any) -> GroupSizes:
    rows: list[tuple[int, int, int, int, float]] = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        prompts = batch.column("prompt_ids").value_lengths().to_pylist()
        for prompt, completions, pairs in zip(
            prompts, batch.column("completions"), batch.column("pairs"), strict=True
        ):
            lengths = completions.values.value_lengths().to_pylist()
            weight = sum(p["weight"] for p in pairs.as_py() or [])
            targets = sum(lengths)
            tokens = prompt * len(lengths) + targets
            rows.append((len(lengths), prompt + max(lengths), tokens, targets, weight))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return GroupSizes(
        np.array(columns[0], np.int32),
        np.array(columns[1], np.int32),
        np.array(columns[2], np.int64),
        np.array(columns[3], np.int64),
        np.array(columns[4], np.float64),
    )
