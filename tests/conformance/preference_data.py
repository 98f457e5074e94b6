"""A small preference data set in which every token has its own number, with tables of log-probs.

It has rows as the training stage reads them, and for every completion token the values of policy
and reference. Tokens never repeat, so a token's id is its place in each table, and a gradient by
a table is a gradient by tokens.

All numbers are multiples of 1/64, which float32 holds and adds without rounding.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

#: Completions of the groups, in turn; lengths of the completions, in turn.
SIZES = [2, 3, 4, 2, 3, 2, 4, 3, 2, 3]
LENGTHS = [2, 1, 3, 1, 4, 2, 3]
#: None for a completion of another prompt, which every group has. In the second step one completion is a
#: bad one, in the last step none is.
JUDGEMENTS: list[list[bool | None]] = [
    [True, None],
    [False, None],
    [True, True, None],
    [False, None],
    [None, True],
    [True, None],
    [False, None],
    [True, False, None],
    [True, None],
    [None, True, False],
]
#: Completions of the groups that a policy sampled; a group whose rewards are equal, by number.
SAMPLED_SIZES = [1, 3, 4, 2, 3, 2, 4, 3, 2, 3]
EQUALLY_REWARDED = 9
#: Columns of `Tables.top_logits`: what the largest `top_k` of the cases asks for.
MOST_TOP_LOGITS = 8


@dataclass(frozen=True)
class Tables:
    """By token id, nats where they are log-probs or divergences; `top_logits` in descending order."""

    logps: list[float] = field(default_factory=list[float])
    reference: list[float] = field(default_factory=list[float])
    kl: list[float] = field(default_factory=list[float])
    target_logits: list[float] = field(default_factory=list[float])
    sampler: list[float] = field(default_factory=list[float])
    top_logits: list[list[float]] = field(default_factory=list[list[float]])


@dataclass(frozen=True)
class Data:
    """Rows, and what the models say of their tokens."""

    rows: list[Row]
    tables: Tables


def paired() -> Data:
    """Groups with rankings and pairs; weights and probabilities of pairs differ within a group."""
    draw = random.Random(16)
    data = Data([], Tables())
    for number, size in enumerate(SIZES):
        ranking = draw.sample(range(size), size)
        pairs = [
            {
                "chosen": better,
                "rejected": ranking[place],
                "weight": draw.choice([0.25, 0.5, 1.5, 2.0]),
                "probability": draw.randint(36, 60) / 64,
            }
            for place in range(size)
            for better in ranking[:place]
            if size < 4 or draw.random() < 0.7
        ]
        _add_row(data, number, draw, size, {"pairs": pairs, "ranking": ranking, "desirable": None})
    return data


def unpaired() -> Data:
    """Completions judged one by one, more of them good than bad, and completions of other prompts."""
    draw = random.Random(110)
    data = Data([], Tables())
    for number, desirable in enumerate(JUDGEMENTS):
        known = {"pairs": [], "ranking": None, "desirable": desirable}
        _add_row(data, number, draw, len(desirable), known)
    return data


def sampled() -> Data:
    """Completions with rewards and the log-probs of the policy that sampled them; no pairs."""
    draw = random.Random(402)
    data = Data([], Tables())
    for number, size in enumerate(SAMPLED_SIZES):
        _add_row(data, number, draw, size, {"pairs": [], "ranking": None, "desirable": None})
        row = data.rows[-1]
        for completion in row["completions"]:
            data.tables.sampler.extend(
                data.tables.logps[token] + draw.randint(-30, 30) / 64 for token in completion
            )
        same = draw.randint(-90, 90) / 64
        row["rewards"] = [
            same if number == EQUALLY_REWARDED else draw.randint(-90, 90) / 64 for _ in range(size)
        ]
        flat = data.tables.sampler
        row["sampler_token_logps"] = [[flat[token] for token in c] for c in row["completions"]]
    return data


def _add_row(data: Data, number: int, draw: random.Random, size: int, known: Row) -> None:
    completions = []
    for _ in range(size):
        first = len(data.tables.logps)
        length = draw.choice(LENGTHS)
        completions.append(list(range(first, first + length)))
        for _ in range(length):
            _add_token(data.tables, draw)
    flat = data.tables.reference
    data.rows.append(
        {
            "group_id": f"group {number}",
            "prompt_ids": [0] * draw.randint(1, 3),
            "completions": completions,
            "reference_token_logps": [[flat[token] for token in c] for c in completions],
            **known,
        }
    )


def _add_token(tables: Tables, draw: random.Random) -> None:
    reference = -draw.randint(32, 160)
    tables.reference.append(reference / 64)
    tables.logps.append(min(reference + draw.randint(-80, 96), -4) / 64)
    tables.kl.append(draw.randint(4, 60) / 64)
    tables.target_logits.append(draw.randint(-150, 150) / 64)
    logits = draw.sample(range(-100, 150), MOST_TOP_LOGITS)
    tables.top_logits.append(sorted((logit / 64 for logit in logits), reverse=True))


PAIRED = paired()
UNPAIRED = unpaired()
SAMPLED = sampled()
#: What every objective learns from, by name.
DATA = {"paired": PAIRED, "unpaired": UNPAIRED, "sampled": SAMPLED}
