"""Preference groups for training: random access to a table larger than memory.

Finished tables become a memory-mapped Arrow file on this machine's disk, which yields a `Group` for
each number. Only the lengths are in memory.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydpo.core.errors import DataError
from raydpo.core.private_files import kept
from raydpo.core.tables import PAIR, Row

_ROWS_PER_BATCH: Final = 512
_SCHEMA: Final = pa.schema(
    [
        ("group_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completions", pa.list_(pa.list_(pa.int32()))),
        ("pairs", pa.list_(PAIR)),
        ("ranking", pa.list_(pa.int32())),
        ("desirable", pa.list_(pa.bool_())),
        ("reference_token_logps", pa.list_(pa.list_(pa.float32()))),
        ("rewards", pa.list_(pa.float64())),
        ("sampler_token_logps", pa.list_(pa.list_(pa.float32()))),
    ]
)


class Pair(NamedTuple):
    """Two completions of a group, by number.

    `probability`, that chosen wins, is 1 if only the label is known.
    """

    chosen: int
    rejected: int
    weight: float = 1.0
    probability: float = 1.0


@dataclass(frozen=True)
class Group:
    """One prompt with K completions, their judgements, and the reference's log-probs.

    Supervised examples are groups with one completion and no judgement.

    Attributes:
        group_id: the group's name.
        prompt_ids: token ids of the prompt.
        completions: token ids of each completion.
        pairs: chosen and rejected completions; a plain tuple is a pair whose label alone is known.
        reference_token_logps: for each completion one log-prob per token, or None.
        ranking: completions by number, best first, or None.
        desirable: one judgement per completion, or None; a completion that answers another prompt
            has None in it.
        number: the group's place in the data, from 0.
        rewards: one per completion, or None.
        sampler_token_logps: for each completion one log-prob per token under the policy that
            sampled it, or None.
    """

    group_id: str
    prompt_ids: list[int]
    completions: list[list[int]]
    pairs: list[Pair]
    reference_token_logps: list[list[float]] | None
    ranking: list[int] | None = None
    desirable: list[bool | None] | None = None
    number: int = 0
    rewards: list[float] | None = None
    sampler_token_logps: list[list[float]] | None = None

    @property
    def longest(self) -> int:
        """Number of tokens in the longest sequence: the prompt and one completion."""
        return len(self.prompt_ids) + max(len(c) for c in self.completions)

    @property
    def flat(self) -> int:
        """Number of tokens in all sequences, with the prompt counted once."""
        return len(self.prompt_ids) + sum(len(c) for c in self.completions)

    def only(self, completions: list[int]) -> Group:
        """Return the group with only these completions, in this order, without pairs or ranking."""
        reference, desirable = self.reference_token_logps, self.desirable
        rewards, sampler = self.rewards, self.sampler_token_logps
        return replace(
            self,
            completions=[self.completions[i] for i in completions],
            pairs=[],
            reference_token_logps=reference and [reference[i] for i in completions],
            ranking=None,
            desirable=desirable and [desirable[i] for i in completions],
            rewards=rewards and [rewards[i] for i in completions],
            sampler_token_logps=sampler and [sampler[i] for i in completions],
        )


@dataclass(frozen=True)
class GroupSizes:
    """The sizes of all groups that the composition of steps needs, as arrays of length N.

    Attributes:
        sequences: number of completions.
        longest: tokens of the longest sequence, including the prompt.
        tokens: tokens of all sequences, with the prompt counted for each.
        flat: tokens of all sequences, with the prompt counted once.
        targets: number of completion tokens.
        pair_weight: sum of the weights of the pairs.
        rankings: 1 if the group has a ranking, else 0.
        judged: number of completions that were judged individually.
        rewards: sum of the rewards of the completions; 0 without rewards.
        sampler_logratios: sum over all completion tokens of the sampler's log-prob minus the
            reference's, in nats; 0 if one of the two is not there.
    """

    sequences: npt.NDArray[np.int32]
    longest: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int64]
    flat: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    pair_weight: npt.NDArray[np.float64]
    rankings: npt.NDArray[np.int64]
    judged: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float64]
    sampler_logratios: npt.NDArray[np.float64]


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
        pairs = [_pair(pair) for pair in row.pop("pairs") or []]
        return Group(pairs=pairs, number=index, **row)


def _pair(row: Row) -> Pair:
    known = row["probability"]
    return Pair(row["chosen"], row["rejected"], row["weight"], 1.0 if known is None else known)


def write_groups(rows: Iterable[Row], key: str) -> Path:
    """Write group rows to a local Arrow file, once per `key`, schema and machine.

    An existing file is compared with the hash in its name, and written again if it has changed.
    """
    schema = hashlib.sha256(str(_SCHEMA).encode()).hexdigest()  # differs between versions

    def write(path: Path) -> None:
        with pa.ipc.new_file(str(path), _SCHEMA) as writer:
            for chunk in _chunks(rows):
                writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=_SCHEMA))

    return kept(f"groups-{key[:32]}-{schema[:8]}", write)


def joined_rows(
    preferences: Iterable[Row], reference: Iterable[Row], keep: Callable[[Row], bool]
) -> Iterator[Row]:
    """Join preference rows with their reference log-probs, which are in the same order.

    Args:
        preferences: rows of the preferences table.
        reference: rows of the reference table.
        keep: whether training uses a row of the preferences.

    Raises:
        DataError: a row has no reference, or one of another length; the error names the row.
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
        if keep(row):
            yield _group_row(row, logps["reference_token_logps"])


def example_rows(examples: Iterable[Row]) -> Iterator[Row]:
    """Turn examples into groups with one completion; the first token is never a target."""
    for row in examples:
        start = max(1, row["prompt_tokens"])
        yield {
            "group_id": row["example_id"],
            "prompt_ids": row["token_ids"][:start],
            "completions": [row["token_ids"][start:]],
            "pairs": [],
            "reference_token_logps": None,
        }


def rows_without_reference(
    preferences: Iterable[Row], keep: Callable[[Row], bool]
) -> Iterator[Row]:
    """Turn preference rows into group rows for an objective that needs no reference.

    Args:
        preferences: rows of the preferences table.
        keep: whether training uses a row of the preferences.
    """
    return (_group_row(row, None) for row in preferences if keep(row))


def _group_row(row: Row, reference_token_logps: list[list[float]] | None) -> Row:
    sampler = row.get("sampler_token_logps")
    return {
        "group_id": row["group_id"],
        "prompt_ids": row["prompt_ids"],
        "completions": row["completions"],
        "pairs": row["pairs"],
        "ranking": row.get("ranking"),
        "desirable": row.get("desirable"),
        "reference_token_logps": reference_token_logps,
        "rewards": None if sampler is None else row["rewards"],
        "sampler_token_logps": sampler,
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
    rows: list[tuple[float, ...]] = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        prompts = batch.column("prompt_ids").value_lengths().to_pylist()
        names = ("completions", "pairs", "ranking", "desirable")
        values = ("rewards", "sampler_token_logps", "reference_token_logps")
        sized = zip(prompts, *(batch.column(name) for name in names), strict=True)
        summed = zip(*(batch.column(name) for name in values), strict=True)
        for row, sums in zip(sized, summed, strict=True):
            rows.append((*_size(*row), *_sums(*sums)))
    columns = np.array(rows, np.float64).reshape(-1, 10).T
    sequences, longest, tokens, flat, targets, weight, rankings, judged, rewards, logratios = (
        columns
    )
    return GroupSizes(
        sequences=sequences.astype(np.int32),
        longest=longest.astype(np.int32),
        tokens=tokens.astype(np.int64),
        flat=flat.astype(np.int64),
        targets=targets.astype(np.int64),
        pair_weight=weight,
        rankings=rankings.astype(np.int64),
        judged=judged.astype(np.int64),
        rewards=rewards,
        sampler_logratios=logratios,
    )


def _size(
    prompt: int, completions: Any, pairs: Any, ranking: Any, desirable: Any
) -> tuple[float, ...]:
    """Return the sizes of a group of Arrow values, in the order of `GroupSizes`."""
    lengths = completions.values.value_lengths().to_pylist()
    targets = sum(lengths)
    return (
        len(lengths),
        prompt + max(lengths),
        prompt * len(lengths) + targets,
        prompt + targets,
        targets,
        sum(pair["weight"] for pair in pairs.as_py() or []),
        int(ranking.is_valid),
        sum(judgement is not None for judgement in desirable.as_py() or []),
    )


def _sums(rewards: Any, sampler: Any, reference: Any) -> tuple[float, float]:
    """Return the last two of a group's sizes, from Arrow values."""
    logratios = 0.0
    if sampler.is_valid and reference.is_valid:
        logratios = _token_sum(sampler) - _token_sum(reference)
    return math.fsum(rewards.as_py() or []), logratios


def _token_sum(logps: Any) -> float:
    return float(logps.values.flatten().to_numpy().sum(dtype=np.float64))
