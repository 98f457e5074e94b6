"""The preferences that are inspected, as texts, and batches of them as arrays.

A `Group` is one prompt with its completions and pairs, wherever it was read. A `Batch` holds some
hundreds of groups as arrays, so that each inspection is a few operations of numpy or Arrow.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydpo.core.tables import Row
from raydpo.labeling.inspection.words import Tokens, Vocabulary

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

#: Groups of one batch. Texts of a thousand characters make a batch of about 50 MB.
GROUPS_OF_A_BATCH: Final = 1024
_EXCERPT_CHARACTERS: Final = 400


@dataclass(frozen=True)
class Group:
    """One prompt, its completions, and the pairs over them.

    Attributes:
        prompt: its text. Equal texts are one prompt, and prompts are the units of all intervals.
        completions: their texts.
        pairs: (chosen, rejected), indices into `completions`.
        rewards: one for each completion; None where the data has none.
        tokens: the length of each completion; None where the data has no token ids.
        heldout: whether the run keeps the prompt out of training.
        rejected_prompt: the prompt of the second completion, where it is another one.
        position: the place of the chosen completion, 0 or 1, among the two that a judge saw; None
            where the data does not say it.
    """

    prompt: str
    completions: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    rewards: tuple[float, ...] | None = None
    tokens: tuple[int, ...] | None = None
    heldout: bool = False
    rejected_prompt: str | None = None
    position: int | None = None


@dataclass(frozen=True)
class Batch:
    """Some groups as arrays. G groups have T completions ("texts") and P pairs.

    Attributes:
        groups: the groups, [G].
        texts: their completions one after the other, [T].
        group_of_text: index of each text's group, [T].
        chosen: index of each pair's chosen text, [P].
        rejected: index of each pair's rejected text, [P].
        group_of_pair: index of each pair's group, [P].
        vocabulary: numbers the words of the batch.
    """

    groups: list[Group]
    texts: list[str]
    group_of_text: Ints
    chosen: Ints
    rejected: Ints
    group_of_pair: Ints
    vocabulary: Vocabulary = field(repr=False)

    @cached_property
    def prompt_keys(self) -> Keys:
        """A hash of each group's prompt, [G]."""
        return text_keys(group.prompt for group in self.groups)

    @cached_property
    def pair_prompts(self) -> Keys:
        """The key of each pair's prompt, [P]."""
        return self.prompt_keys[self.group_of_pair]

    @cached_property
    def arrow(self) -> pa.StringArray:
        """The texts for Arrow; what is no Unicode is replaced, [T]."""
        return arrow_texts(self.texts)

    @cached_property
    def lengths(self) -> Ints:
        """The length of each text, in tokens where all groups have them, else characters, [T]."""
        if self.in_tokens:
            counts = (group.tokens or () for group in self.groups)
            return np.fromiter(itertools.chain.from_iterable(counts), np.int64, len(self.texts))
        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))

    @cached_property
    def in_tokens(self) -> bool:
        """Whether lengths are counted in tokens."""
        return all(group.tokens is not None for group in self.groups)

    @cached_property
    def of_prompt(self) -> NDArray[np.bool_]:
        """Whether each text answers its group's prompt, [T]."""
        own = np.ones(len(self.texts), np.bool_)
        for index in np.flatnonzero(np.diff(self.group_of_text, prepend=-1) == 0).tolist():
            group = self.groups[int(self.group_of_text[index])]
            own[index] = group.rejected_prompt is None
        return own

    @cached_property
    def tokens(self) -> Tokens:
        """The words of the texts."""
        return self.vocabulary.tokens(self.texts)

    @cached_property
    def prompt_tokens(self) -> Tokens:
        """The words of the prompts."""
        return self.vocabulary.tokens([group.prompt for group in self.groups])

    def example(self, pair: int) -> dict[str, str]:
        """Return a pair as excerpts for people."""
        group = self.groups[int(self.group_of_pair[pair])]
        other = group.rejected_prompt
        return {
            "prompt": excerpt(group.prompt),
            "chosen": excerpt(self.texts[int(self.chosen[pair])]),
            **({"prompt of the rejected one": excerpt(other)} if other is not None else {}),
            "rejected": excerpt(self.texts[int(self.rejected[pair])]),
        }


def batches(groups: Iterable[Group], vocabulary: Vocabulary) -> Iterator[Batch]:
    """Yield batches of groups, in their order."""
    iterator = iter(groups)
    while part := list(itertools.islice(iterator, GROUPS_OF_A_BATCH)):
        yield _batch(part, vocabulary)


def _batch(groups: list[Group], vocabulary: Vocabulary) -> Batch:
    sizes = np.array([len(group.completions) for group in groups], np.int64)
    starts = np.cumsum(sizes) - sizes
    pairs = np.array([len(group.pairs) for group in groups], np.int64)
    of_pair = np.repeat(np.arange(len(groups)), pairs)
    flat = [pair for group in groups for pair in group.pairs]
    ends = np.array(flat, np.int64).reshape(-1, 2) + starts[of_pair][:, None]
    return Batch(
        groups,
        [text for group in groups for text in group.completions],
        np.repeat(np.arange(len(groups)), sizes),
        ends[:, 0],
        ends[:, 1],
        of_pair,
        vocabulary,
    )


def group_of_row(row: Row, heldout: bool = False) -> Group:
    """Return a row of a table of preferences as a group."""
    pairs = tuple((int(pair["chosen"]), int(pair["rejected"])) for pair in row["pairs"])
    rewards = row["rewards"]
    return Group(
        prompt=row["prompt"],
        completions=tuple(row["completion_texts"]),
        pairs=pairs,
        rewards=tuple(rewards) if rewards and None not in rewards else None,
        tokens=tuple(len(ids) for ids in row["completions"]),
        heldout=heldout,
    )


def paired_judgements(judged: Iterable[tuple[Group, bool]]) -> Iterator[Group]:
    """Pair completions that were judged alone: a desirable with an undesirable one.

    The k-th desirable completion meets the k-th undesirable one, of another prompt. All that is
    left over at the end has no partner and is left out.

    Args:
        judged: groups of one completion, and whether it is desirable.
    """
    waiting: list[Group] = []
    waits_for = True
    for group, desirable in judged:
        if waiting and desirable is waits_for:
            other = waiting.pop(0)
            good, bad = (group, other) if desirable else (other, group)
            tokens = None
            if good.tokens is not None and bad.tokens is not None:
                tokens = good.tokens[:1] + bad.tokens[:1]
            texts = good.completions[:1] + bad.completions[:1]
            yield Group(
                good.prompt,
                texts,
                ((0, 1),),
                tokens=tokens,
                heldout=good.heldout,
                rejected_prompt=bad.prompt,
            )
        else:
            waiting.append(group)
            waits_for = not desirable


def text_keys(texts: Iterable[str]) -> Keys:
    """Hash texts to 64 bits; texts that differ in case or white space alone have one key."""
    keys = (
        int.from_bytes(
            hashlib.blake2b(
                " ".join(text.lower().split()).encode("utf-8", "surrogatepass"), digest_size=8
            ).digest(),
            "little",
        )
        for text in texts
    )
    return np.fromiter(keys, np.uint64)


def arrow_texts(texts: Iterable[str]) -> pa.StringArray:
    """Return texts as an Arrow array; lone surrogates become question marks."""
    return pa.array([text.encode("utf-8", "replace") for text in texts], pa.string())


def excerpt(text: str) -> str:
    """Shorten a text for people; the middle of a long one is left out."""
    if len(text) <= _EXCERPT_CHARACTERS:
        return text
    half = _EXCERPT_CHARACTERS // 2
    return f"{text[:half]} [...] {text[-half:]}"
