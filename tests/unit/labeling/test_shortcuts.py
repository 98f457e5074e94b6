"""The numbers of lexical short cuts and of near copies, against their definitions."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from preference_texts import clean_groups, planted

from raydpo.labeling.inspection import minhash, shortcuts
from raydpo.labeling.inspection.groups import Group, batches, text_keys
from raydpo.labeling.inspection.shares import share_of, wilson
from raydpo.labeling.inspection.shortcuts import Shortcuts
from raydpo.labeling.inspection.words import Vocabulary


def terms(text: str) -> set[str]:
    words = re.findall(r"[a-z0-9]+|[^\w\s]", text.lower())
    return {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}


def log_odds(groups: list[Group]) -> dict[str, tuple[float, float]]:
    """delta and z of each term, from equations 15 to 22 of the paper, one term at a time."""
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for group in groups:
        one, other = map(terms, group.completions)
        chosen.update(one - other)
        rejected.update(other - one)
    prior = {t: 0.1 * (chosen[t] + rejected[t]) for t in {*chosen, *rejected}}
    n_c, n_r, a_0 = chosen.total(), rejected.total(), sum(prior.values())
    found = {}
    for t, a in prior.items():
        y_c, y_r = chosen[t] + a, rejected[t] + a
        delta = math.log(y_c / (n_c + a_0 - y_c)) - math.log(y_r / (n_r + a_0 - y_r))
        found[t] = delta, delta / math.sqrt(1 / y_c + 1 / y_r)
    return found


@pytest.fixture
def groups() -> list[Group]:
    return planted(clean_groups(500), 0.3, lambda one, other: (f"Surely so. {one}", other))


def test_log_odds_are_those_of_the_paper(groups: list[Group]) -> None:
    vocabulary = Vocabulary()
    found = Shortcuts(vocabulary)
    for batch in batches(groups, vocabulary):
        found.add(batch)
    expected = log_odds(groups)
    shown = found.finding().plot["terms"]
    assert {one["term"] for one in shown} >= {"surely so"}
    for one in shown:
        assert (one["delta"], one["z"]) == pytest.approx(expected[one["term"]])
        assert one["share"] == pytest.approx(1 / (1 + math.exp(-abs(one["delta"]))))


def test_counts_do_not_depend_on_how_often_they_are_merged(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> dict[str, float]:
        vocabulary = Vocabulary()
        one = Shortcuts(vocabulary)
        for start in range(0, len(groups), 50):
            for batch in batches(groups[start : start + 50], vocabulary):
                one.add(batch)
        return {t["term"]: t["z"] for t in one.finding().plot["terms"]}

    before = found()
    monkeypatch.setattr(shortcuts, "_MOST_TERMS", 4_000)  # rare terms are forgotten
    assert found() == pytest.approx(before, rel=0.005)


def test_held_out_prompts_are_limited_and_none_is_lost(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "_MOST_HELDOUT", 20)
    vocabulary = Vocabulary()
    one = Shortcuts(vocabulary)
    for batch in batches(groups, vocabulary):
        one.add(batch)
    finding = one.finding()
    [rule] = [n for n in finding.numbers if "rule of words" in n.name]
    assert rule.interval is not None
    assert [n.value for n in finding.numbers if n.name.startswith("prompts")] == [500]
    expected = log_odds(groups)
    assert all(t["z"] == pytest.approx(expected[t["term"]][1]) for t in finding.plot["terms"])


def test_words_of_several_scripts() -> None:
    vocabulary = Vocabulary()
    texts = ["Don’t stop, it's 3_4!", "", "日本語 text", "И так далее…"]
    tokens = vocabulary.tokens(texts)
    words = [vocabulary.word(int(number)) for number in tokens.ids]
    cut = np.split(np.array(words, dtype=object), tokens.starts[1:])
    assert [list(one) for one in cut] == [
        ["don’t", "stop", ",", "it's", "3", "_", "4", "!"],
        [],
        ["日", "本", "語", "text"],
        ["и", "так", "далее", "…"],
    ]


def runs(text: str) -> set[tuple[str, ...]]:
    words = [*text.split(), "", ""]
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_resemblance_is_the_jaccard_index() -> None:
    draws = np.random.default_rng(0)
    words = [f"w{n}" for n in range(2000)]
    texts, expected = [], []
    for kept in np.linspace(0, 120, 60).astype(int):
        one = draws.choice(words, 120, replace=False).tolist()
        other = one[:kept] + draws.choice(words, 120 - kept).tolist()
        texts += [" ".join(one), " ".join(other)]
        both = runs(texts[-2]), runs(texts[-1])
        expected.append(len(both[0] & both[1]) / len(both[0] | both[1]))
    found = minhash.signatures(Vocabulary().tokens(texts))
    errors = minhash.resemblance(found[::2], found[1::2]) - np.array(expected)
    # The standard error of one estimate is at most 1/16.
    assert abs(float(errors.mean())) < 0.025
    assert float(np.abs(errors).max()) < 0.22


def test_near_copies_are_found_and_texts_without_words_are_none() -> None:
    long = [g.completions[0] for g in clean_groups(300) if len(g.completions[0].split()) > 20]
    texts = [*long, "", "", f"{long[7]} so", "Yes."]
    found = minhash.signatures(Vocabulary().tokens(texts))
    partner = minhash.near_earlier(found)
    assert {int(i): int(partner[i]) for i in np.flatnonzero(partner >= 0)} == {len(long) + 2: 7}
    others = minhash.near_other(found[: len(long)], found[len(long) :])
    assert others.tolist() == [-1, -1, 7, -1]


def test_signatures_do_not_depend_on_the_texts_beside_them() -> None:
    texts = [" ".join(g.completions) for g in clean_groups(400)]
    vocabulary = Vocabulary()
    vocabulary.tokens(texts)
    together = minhash.signatures(vocabulary.tokens(texts))
    alone = [minhash.signatures(vocabulary.tokens([text]))[0] for text in texts[:20]]
    assert np.array_equal(together[:20], np.stack(alone))


def test_intervals_of_shares_are_wilsons_and_prompts_are_their_units() -> None:
    # 8 of 10: [0.490, 0.943] (Newcombe 1998 gives Wilson's interval in this way).
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    outcomes = np.array([1.0] * 8 + [0.0] * 2)
    alone = share_of(outcomes, text_keys(map(str, range(10))))
    assert alone is not None
    assert (alone.low, alone.high) == pytest.approx(wilson(0.8, 9), abs=1e-4)  # G - 1 prompts
    twice = share_of(np.repeat(outcomes, 2), np.repeat(text_keys(map(str, range(10))), 2))
    assert twice is not None
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))
    assert (twice.prompts, twice.observations) == (10, 20)


def test_a_prompt_counts_once_however_many_rows_it_has(groups: list[Group]) -> None:
    again = [replace(g, completions=("Surely so.", g.completions[1])) for g in groups]
    vocabulary = Vocabulary()
    one = Shortcuts(vocabulary)
    for batch in batches([*groups, *again], vocabulary):
        one.add(batch)
    expected = log_odds(groups)
    shown = one.finding().plot["terms"]
    assert shown
    assert all(t["z"] == pytest.approx(expected[t["term"]][1]) for t in shown)
