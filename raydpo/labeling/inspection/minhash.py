"""Find texts that are nearly alike, by MinHash (Broder 1997) over runs of three words.

The resemblance of two texts is the Jaccard index of their sets of three-word runs. The share of equal
places in two signatures estimates it, with a standard error of at most 1 / (2 sqrt(places)). Only texts
that agree in a whole band of places are compared. So texts of a resemblance of 0.8 are found with a
probability of 1 - (1 - 0.8^4)^16 > 0.999, and of 0.5 with 0.64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.labeling.inspection.words import Tokens

Signatures = NDArray[np.uint32]
Ints = NDArray[np.int64]

PLACES: Final = 64
_BANDS: Final = 16
_ROWS: Final = PLACES // _BANDS
#: Texts with this estimated resemblance are nearly alike.
NEAR: Final = 0.8
_RUN: Final = 3
_NOTHING: Final = np.uint32(0xFFFFFFFF)
_DRAWS: Final = np.random.default_rng(1997)
_ODD: Final = _DRAWS.integers(1, 2**63, (_RUN + PLACES + _ROWS,), np.uint64) << np.uint64(
    1
) | np.uint64(1)
_WORD_FACTORS: Final = _ODD[:_RUN]
_PLACE_FACTORS: Final = _ODD[_RUN : _RUN + PLACES]
_BAND_FACTORS: Final = _ODD[_RUN + PLACES :]
#: Words that are hashed at a time, so that they stay in the processor's cache.
_WORDS_AT_A_TIME: Final = 16_384


def signatures(tokens: Tokens) -> Signatures:
    """Return the signature of each text, [T, places]; all ones for a text without words."""
    hashes = _hashes(tokens)
    found = np.full((len(tokens.counts), PLACES), _NOTHING, np.uint32)
    texts = np.flatnonzero(tokens.counts)
    ends = tokens.starts + tokens.counts
    begin = 0
    while begin < len(texts):
        first = tokens.starts[texts[begin]]
        stop = max(int(np.searchsorted(ends[texts], first + _WORDS_AT_A_TIME, "right")), begin + 1)
        some = texts[begin:stop]
        words = hashes[first : ends[some[-1]]]
        starts = tokens.starts[some] - first
        for place, factor in enumerate(_PLACE_FACTORS):
            mixed = ((words * factor) >> np.uint64(32)).astype(np.uint32)
            found[some, place] = np.minimum.reduceat(mixed, starts)
        begin = stop
    return found


def joined(found: Signatures, starts: Ints) -> Signatures:
    """Return the signatures of unions: of the texts from each start up to the next one."""
    return np.minimum.reduceat(found, starts, axis=0) if len(starts) else found[:0]


def resemblance(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """Estimate the resemblance of texts row by row, [n]; 0 for texts without words."""
    equal = (one == other).mean(axis=1)
    return np.where(one[:, 0] == _NOTHING, 0.0, equal)


def near_earlier(found: Signatures, beside: Signatures | None = None) -> Ints:
    """Return for each text an earlier one that is nearly alike, or -1, [T].

    Args:
        found: the signatures of the texts.
        beside: further signatures of the same rows that must be nearly alike, too.
    """
    partner = np.full(len(found), -1, np.int64)
    for order, firsts in _buckets(found):
        for other in (firsts, np.arange(len(order)) - 1):
            same = firsts != np.arange(len(order))
            later, earlier = order[same], order[other[same]]
            _keep_near(partner, later, earlier, found, beside)
    return partner


def near_other(found: Signatures, others: Signatures) -> Ints:
    """Return for each of `others` a row of `found` that is nearly alike, or -1."""
    partner = np.full(len(found) + len(others), -1, np.int64)
    both = np.concatenate([found, others])
    for order, firsts in _buckets(both):
        # In a bucket the rows of `found` stand first; its last one is the nearest before the others.
        place = np.arange(len(order))
        is_found = order < len(found)
        last = np.maximum.accumulate(np.where(is_found, place, -1))
        for candidate in (firsts, last):
            usable = ~is_found & (candidate >= firsts) & is_found[candidate]
            _keep_near(partner, order[usable], order[candidate[usable]], both, None)
    return partner[len(found) :]


def _keep_near(
    partner: Ints, later: Ints, earlier: Ints, found: Signatures, beside: Signatures | None
) -> None:
    """Write down those candidates that are nearly alike."""
    new = partner[later] < 0
    later, earlier = later[new], earlier[new]
    for start in range(0, len(later), _WORDS_AT_A_TIME):
        one, other = (rows[start : start + _WORDS_AT_A_TIME] for rows in (later, earlier))
        near = resemblance(found[one], found[other]) >= NEAR
        if beside is not None:
            near &= resemblance(beside[one], beside[other]) >= NEAR
        partner[one[near]] = other[near]


def _hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """Hash the run of words that begins at each word, [N]; behind the end of a text stands 0."""
    words = tokens.ids.astype(np.uint64)
    total = np.zeros(len(words), np.uint64)
    left = np.repeat(tokens.starts + tokens.counts, tokens.counts) - np.arange(len(words))
    for offset, factor in enumerate(_WORD_FACTORS):
        shifted = np.zeros(len(words), np.uint64)
        shifted[: len(words) - offset] = words[offset:]
        total += np.where(left > offset, shifted, np.uint64(0)) * factor
    total ^= total >> np.uint64(31)
    total *= np.uint64(0x9E3779B97F4A7C15)
    return total ^ (total >> np.uint64(29))


def _buckets(found: Signatures) -> Iterator[tuple[Ints, Ints]]:
    """Yield for each band the rows in the order of their buckets, and each one's first place."""
    usable = np.flatnonzero(found[:, 0] != _NOTHING)
    for band in range(_BANDS):
        rows = found[usable, band * _ROWS : (band + 1) * _ROWS].astype(np.uint64)
        keys = (rows * _BAND_FACTORS).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        new = np.diff(keys[order], prepend=keys[order[:1]] + np.uint64(1)) != 0
        place = np.arange(len(order))
        yield usable[order], np.maximum.accumulate(np.where(new, place, 0))
