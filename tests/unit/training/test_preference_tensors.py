"""Pairs, rankings and judgements name sequences of the micro-batch."""

import uuid

import torch

from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import (
    Group,
    GroupDataset,
    Pair,
    rows_without_reference,
    write_groups,
)

ROWS = [
    {
        "group_id": "a",
        "prompt_id": "p",
        "prompt_ids": [7],
        "completions": [[1], [2, 3], [4]],
        "pairs": [
            {"chosen": 1, "rejected": 0, "weight": 0.5, "probability": None},
            {"chosen": 1, "rejected": 2, "weight": 0.5, "probability": 0.75},
        ],
        "ranking": [1, 2, 0],
        "desirable": None,
    },
    {
        "group_id": "b",
        "prompt_id": "q",
        "prompt_ids": [7, 7],
        "completions": [[1], [2]],
        "pairs": [{"chosen": 0, "rejected": 1, "weight": 1.0, "probability": None}],
        "ranking": [0, 1],
        "desirable": None,
    },
    {
        "group_id": "c",
        "prompt_id": "r",
        "prompt_ids": [8],
        "completions": [[5], [6]],
        "pairs": [],
        "ranking": None,
        "desirable": [False, None],
    },
]


def dataset() -> GroupDataset:
    return GroupDataset(
        write_groups(rows_without_reference(ROWS, lambda _: True), uuid.uuid4().hex)
    )


def test_sequences_are_numbered_through_the_groups() -> None:
    data = dataset()
    batch = build_micro_batch([data[2], data[0], data[1]])
    assert batch.pairs.tolist() == [[3, 2], [3, 4], [5, 6]]
    assert batch.pair_weights.tolist() == [0.5, 0.5, 1.0]
    assert batch.pair_probabilities.tolist() == [1.0, 0.75, 1.0]
    assert batch.rankings.tolist() == [[3, 4, 2], [5, 6, -1]]
    assert (batch.judged.tolist(), batch.desirable.tolist()) == ([0], [False])
    assert batch.group_numbers.tolist() == [2, 0, 1]
    assert batch.reference_token_logps is None


def test_sizes_count_rankings_and_judgements() -> None:
    sizes = dataset().sizes
    assert sizes.rankings.tolist() == [1, 1, 0]
    assert sizes.judged.tolist() == [0, 0, 1]
    assert sizes.pair_weight.tolist() == [1.0, 1.0, 0.0]


def test_groups_without_pairs_have_empty_tensors_of_the_right_shape() -> None:
    batch = build_micro_batch([Group("x", [1], [[2]], [], None)])
    assert batch.pairs.shape == (0, 2)
    assert batch.rankings.shape[0] == 0
    assert batch.desirable.dtype == torch.bool


def test_part_of_a_group_keeps_the_judgements_of_its_completions() -> None:
    part = dataset()[2].only([1])
    assert (part.completions, part.desirable, part.number) == ([[6]], [None], 2)
    whole = Group("x", [1], [[2], [3]], [Pair(0, 1)], [[-1.0], [-2.0]])
    assert whole.only([1]).reference_token_logps == [[-2.0]]
    assert whole.only([1]).pairs == []
