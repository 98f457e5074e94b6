"""Random access to groups on disk, and their join with the reference."""

import uuid

import pytest

from raydpo.core.errors import DataError
from raydpo.training import groups
from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import GroupDataset, Pair, example_rows, joined_rows, write_groups


def preference(number: int) -> dict:
    completions = [[number + 1, 2], [number + 3, 4, 5]]
    return {
        "group_id": f"g{number}",
        "prompt_id": f"p{number}",
        "prompt_ids": [7] * (number % 5 + 1),
        "completions": completions,
        "pairs": [{"chosen": 1, "rejected": 0, "weight": 0.5}],
    }


def reference(number: int) -> dict:
    return {
        "group_id": f"g{number}",
        "reference_token_logps": [[-1.0, -2.0], [-3.0, -4.0, -float(number)]],
    }


def everyone(row: dict) -> bool:
    return True


def test_groups_of_heldout_prompts_are_left_out() -> None:
    rows = joined_rows(
        map(preference, range(4)), map(reference, range(4)), lambda row: row["prompt_id"] != "p2"
    )
    assert [row["group_id"] for row in rows] == ["g0", "g1", "g3"]


def test_dataset_larger_than_a_record_batch_gives_each_group_by_number() -> None:
    count = 1300
    rows = joined_rows(map(preference, range(count)), map(reference, range(count)), everyone)
    data = GroupDataset(write_groups(rows, uuid.uuid4().hex))
    assert len(data) == count
    for number in (0, 511, 512, 1023, 1299):
        group = data[number]
        assert group.group_id == f"g{number}"
        assert group.completions == preference(number)["completions"]
        assert group.pairs == [Pair(1, 0, 0.5, 1.0)]
        assert group.number == number
        assert group.reference_token_logps == reference(number)["reference_token_logps"]
    assert data.sizes.longest[7] == 3 + 3
    assert data.sizes.tokens[7] == 2 * 3 + 5
    assert data.sizes.targets[7] == 5
    assert data.sizes.pair_weight[7] == 0.5


def test_missing_reference_row_is_named() -> None:
    scored = [reference(n) for n in range(5) if n != 3]
    with pytest.raises(DataError, match="'g3'"):
        list(joined_rows(map(preference, range(5)), scored, everyone))


def test_reference_of_another_length_is_named() -> None:
    row = {"group_id": "g0", "reference_token_logps": [[-1.0], [-3.0, -4.0, 0.0]]}
    with pytest.raises(DataError, match="of other lengths"):
        list(joined_rows([preference(0)], [row], everyone))


def test_supervised_example_has_no_loss_on_its_prompt() -> None:
    rows = [{"example_id": "e", "token_ids": [1, 5, 6, 7], "prompt_tokens": 2}]
    data = GroupDataset(write_groups(example_rows(rows), uuid.uuid4().hex))
    batch = build_micro_batch([data[0]])
    assert batch.targets.tolist() == [6, 7]
    assert batch.predictors.tolist() == [1, 2]
    assert batch.reference_token_logps is None


def test_full_text_example_predicts_every_token_but_the_first() -> None:
    rows = [{"example_id": "e", "token_ids": [1, 5, 6], "prompt_tokens": 0}]
    data = GroupDataset(write_groups(example_rows(rows), uuid.uuid4().hex))
    assert build_micro_batch([data[0]]).targets.tolist() == [5, 6]


def test_a_file_with_another_versions_columns_is_not_taken_for_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, row = uuid.uuid4().hex, {**preference(0), "reference_token_logps": None}
    older = groups._SCHEMA.remove(len(groups._SCHEMA) - 1)
    with monkeypatch.context() as before:
        before.setattr(groups, "_SCHEMA", older)
        stale = write_groups([row], key)
    fresh = write_groups([row], key)
    assert fresh != stale
    assert GroupDataset(fresh)[0].group_id == "g0"
