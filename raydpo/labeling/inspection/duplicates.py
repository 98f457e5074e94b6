"""Rows that repeat earlier ones, labels that contradict each other, and overlap with other prompts.

Exact copies are those whose texts differ in case and white space alone. Near copies come from MinHash
(`minhash.py`). A near copy of a row has both its prompt and its completions. These counts describe the
data itself and have no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection import minhash
from raydpo.labeling.inspection.findings import (
    Finding,
    Json,
    Number,
    above,
    not_measured,
    percent,
    worst,
)
from raydpo.labeling.inspection.groups import Batch, Keys, text_keys
from raydpo.labeling.inspection.words import Vocabulary

Ints = NDArray[np.int64]

_TITLE: Final = "Duplicates"
_LOOK: Final = 0.005
_BAD: Final = 0.05
_LOOK_CONFLICTS: Final = 0.0
_BAD_CONFLICTS: Final = 0.005
_LOOK_EQUAL: Final = 0.02
_BAD_EQUAL: Final = 0.10
_RULE: Final = (
    f"rows that repeat an earlier one, exactly or nearly: look above {percent(_LOOK)}, bad above "
    f"{percent(_BAD)}; the same pair with opposite labels: look from the first one on, bad above "
    f"{percent(_BAD_CONFLICTS)}; pairs with two nearly equal completions: look above "
    f"{percent(_LOOK_EQUAL)}, bad above {percent(_BAD_EQUAL)}"
)
_OVERLAP_TITLE: Final = "Overlap with prompts that measure"
_BAD_OVERLAP: Final = 0.01
_OVERLAP_RULE: Final = (
    "prompts of the other set that are also in the training data, exactly or nearly: look from the "
    f"first one on, bad above {percent(_BAD_OVERLAP)}"
)
_HELDOUT: Final = "held-out groups of the run"
_EXAMPLES: Final = 3
_EXCERPT: Final = 160


@dataclass(frozen=True)
class OtherPrompts:
    """Prompts that must not be in the training data.

    Attributes:
        name: of the set, such as `evaluation.prompts`.
        prompts: their texts.
    """

    name: str
    prompts: Sequence[str]


@dataclass
class Duplicates:
    """Keeps a signature of each row: half a kilobyte."""

    vocabulary: Vocabulary
    _prompts: list[minhash.Signatures] = field(default_factory=list[minhash.Signatures])
    _completions: list[minhash.Signatures] = field(default_factory=list[minhash.Signatures])
    _prompt_keys: list[Keys] = field(default_factory=list[Keys])
    _pair_keys: list[Keys] = field(default_factory=list[Keys])
    _chosen_first: list[NDArray[np.bool_]] = field(default_factory=list[NDArray[np.bool_]])
    _row_of_pair: list[Ints] = field(default_factory=list[Ints])
    _excerpts: list[str] = field(default_factory=list[str])
    _heldout: list[bool] = field(default_factory=list[bool])
    _equal: int = 0
    _equal_examples: list[Json] = field(default_factory=list[Json])

    def add(self, batch: Batch) -> None:
        """Take the rows of a batch."""
        of_texts = minhash.signatures(batch.tokens)
        starts = np.searchsorted(batch.group_of_text, np.arange(len(batch.groups)))
        self._row_of_pair.append(batch.group_of_pair + len(self._excerpts))
        self._prompts.append(minhash.signatures(batch.prompt_tokens))
        self._completions.append(minhash.joined(of_texts, starts))
        self._prompt_keys.append(batch.prompt_keys)
        self._excerpts += [group.prompt[:_EXCERPT] for group in batch.groups]
        self._heldout += [group.heldout for group in batch.groups]
        texts = text_keys(batch.texts)
        chosen, rejected = texts[batch.chosen], texts[batch.rejected]
        low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
        factors = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
        self._pair_keys.append((batch.pair_prompts * factors[0] + low) * factors[1] + high)
        self._chosen_first.append(chosen < rejected)
        near = minhash.resemblance(of_texts[batch.chosen], of_texts[batch.rejected])
        equal = np.flatnonzero((near >= minhash.NEAR) | (chosen == rejected))
        self._equal += len(equal)
        for pair in equal[: max(0, _EXAMPLES - len(self._equal_examples))].tolist():
            example = {**batch.example(pair), "why": "the two completions are nearly equal"}
            self._equal_examples.append(example)

    def finding(self) -> Finding:
        """Judge the rows."""
        rows = len(self._excerpts)
        if not rows:
            return not_measured("duplicates", _TITLE, "There are no rows.")
        prompts = np.concatenate(self._prompts)
        near = minhash.near_earlier(np.concatenate(self._completions), prompts)
        exact, conflicts = self._exact(rows)
        repeats = exact | (near >= 0)
        pairs = max(sum(map(len, self._pair_keys)), 1)
        keys = np.concatenate(self._prompt_keys)
        again = (rows - len(np.unique(keys))) / rows
        like = float((minhash.near_earlier(prompts) >= 0).sum() / rows)
        shares = float(repeats.mean()), conflicts / pairs, self._equal / pairs
        numbers = [
            Number("rows that repeat an earlier row, exactly or nearly", shares[0]),
            Number("rows that repeat an earlier row exactly", float(exact.mean())),
            Number("pairs that another row has with the opposite label", shares[1]),
            Number("pairs with two nearly equal completions", shares[2]),
            Number("rows with the prompt of an earlier row", again),
            Number("rows with the prompt of an earlier row, exactly or nearly", max(again, like)),
        ]
        said = (
            f"{percent(shares[0])} of the rows repeat an earlier one, and {conflicts:,} pairs have the "
            f"opposite label elsewhere. In {percent(shares[2])} of the pairs both completions are "
            "nearly equal."
        )
        return Finding(
            "duplicates",
            _TITLE,
            worst(
                [
                    above(shares[0], _LOOK, _BAD),
                    above(shares[1], _LOOK_CONFLICTS, _BAD_CONFLICTS),
                    above(shares[2], _LOOK_EQUAL, _BAD_EQUAL),
                ]
            ),
            said,
            _RULE,
            numbers,
            examples=[*self._examples(near), *self._equal_examples],
            measured={"duplicates": shares[0], "conflicts": shares[1]},
        )

    def overlap(self, others: Iterable[OtherPrompts]) -> Finding:
        """Judge which prompts of other sets are in the training data."""
        heldout = np.array(self._heldout, np.bool_)
        if not len(heldout):
            return not_measured("overlap", _OVERLAP_TITLE, "There are no rows.")
        signatures, keys = np.concatenate(self._prompts), np.concatenate(self._prompt_keys)
        training = np.flatnonzero(~heldout)
        rows: list[list[str]] = []
        examples: list[Json] = []
        shares: list[float] = []
        for other, texts, exact, near in self._others(others, signatures, keys, training):
            count = max(len(texts), 1)
            both = exact | (near >= 0)
            shares.append(float(both.sum() / count))
            rows.append([other, f"{count:,}", percent(exact.sum() / count), percent(shares[-1])])
            for index in np.flatnonzero(near >= 0)[:_EXAMPLES].tolist():
                found = self._excerpts[int(training[near[index]])]
                examples.append(
                    {"prompt": texts[index], "in the training data": found, "why": other}
                )
        if not shares:
            why = "No prompts to compare with are known. `--against` names some."
            return not_measured("overlap", _OVERLAP_TITLE, why)
        columns = ["", "prompts", "exactly", "exactly or nearly"]
        said = "; ".join(f"{row[0]}: {row[3]}" for row in rows)
        return Finding(
            "overlap",
            _OVERLAP_TITLE,
            above(max(shares), 0.0, _BAD_OVERLAP),
            f"Of these prompts, so many are also in the training data: {said}.",
            _OVERLAP_RULE,
            tables=[
                {"title": "Prompts that are in the training data", "columns": columns, "rows": rows}
            ],
            examples=examples,
            measured={"overlap": max(shares)},
        )

    def _others(
        self,
        others: Iterable[OtherPrompts],
        signatures: minhash.Signatures,
        keys: Keys,
        training: Ints,
    ) -> Iterable[tuple[str, Sequence[str], NDArray[np.bool_], Ints]]:
        """Yield name, texts, which are exact copies, and near training prompts of each set."""
        known, of_training = keys[training], signatures[training]
        if heldout := [index for index, held in enumerate(self._heldout) if held]:
            near = minhash.near_other(of_training, signatures[heldout])
            exact = np.isin(keys[heldout], known)
            yield _HELDOUT, [self._excerpts[index] for index in heldout], exact, near
        for other in others:
            tokens = self.vocabulary.tokens(other.prompts)
            near = minhash.near_other(of_training, minhash.signatures(tokens))
            exact = np.isin(text_keys(other.prompts), known)
            yield other.name, [text[:_EXCERPT] for text in other.prompts], exact, near

    def _exact(self, rows: int) -> tuple[NDArray[np.bool_], int]:
        """Return which rows repeat a pair exactly, and how many pairs stand elsewhere reversed."""
        keys, first = np.concatenate(self._pair_keys), np.concatenate(self._chosen_first)
        row = np.concatenate(self._row_of_pair)
        repeats = np.zeros(rows, np.bool_)
        if not len(keys):
            return repeats, 0
        order = np.argsort(keys, kind="stable")
        new = np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)) != 0
        starts = np.flatnonzero(new)
        sizes = np.diff(np.append(starts, len(order)))
        one_way = np.add.reduceat(first[order].astype(np.int64), starts)
        conflicting = np.repeat((one_way > 0) & (one_way < sizes), sizes)
        repeats[row[order[~new]]] = True
        return repeats, int(conflicting.sum())

    def _examples(self, near: Ints) -> list[Json]:
        return [
            {
                "prompt": self._excerpts[row],
                "the earlier prompt": self._excerpts[int(near[row])],
                "why": f"row {row} is nearly row {int(near[row])}",
            }
            for row in np.flatnonzero(near >= 0)[:_EXAMPLES].tolist()
        ]
