"""Existing preference data as groups: token ids, pairs, rankings, and a full account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import Config, PreferencesConfig
from raydpo.core.errors import ConfigError, DataError, ModelError
from raydpo.core.run import PartResult, read_quarantine, read_rows
from raydpo.core.storage import folder_of
from raydpo.pipeline.round import place_in
from raydpo.prompts.encode import Encoder
from raydpo.prompts.preferences import preference_parts, run_preferences_stage
from raydpo.prompts.rows import content_hash
from raydpo.prompts.sources import SourceRow
from tests.conftest import make_tokenizer

PAIR = {"prompt": "the film was", "chosen": " good", "rejected": " bad"}
RANKED = {"prompt": "the film was", "completions": [" a", " b", " c"], "ratings": [1, 3, 2]}


def _part(tokenizer, rows: list[dict[str, Any]], **section: Any) -> PartResult:
    given = [SourceRow(i, row, None) for i, row in enumerate(rows)]
    preferences = PreferencesConfig(path="unread", **section)
    (part,) = preference_parts(preferences, given, tokenizer, 100)
    return part


def _pairs(row: dict[str, Any]) -> list[tuple[int, int]]:
    return [(pair["chosen"], pair["rejected"]) for pair in row["pairs"]]


def test_a_pair_becomes_a_group_of_two(tokenizer, encoder: Encoder) -> None:
    (row,) = _part(tokenizer, [PAIR]).rows
    assert encoder.decode(row["prompt_ids"]) == "<s>the film was"
    assert [encoder.decode(ids) for ids in row["completions"]] == [" good</s>", " bad</s>"]
    assert row["completion_texts"] == [" good", " bad"]
    assert (_pairs(row), row["ranking"], row["rewards"]) == ([(0, 1)], [0, 1], None)
    assert row["prompt_id"] == content_hash("the film was")


def test_a_ranked_list_becomes_all_pairs_best_first(tokenizer) -> None:
    (row,) = _part(tokenizer, [RANKED]).rows
    assert row["ranking"] == [1, 2, 0]
    assert _pairs(row) == [(1, 2), (1, 0), (2, 0)]
    assert row["rewards"] == [1.0, 3.0, 2.0]


def test_pairs_of_a_ranked_list_need_the_margin(tokenizer) -> None:
    (row,) = _part(tokenizer, [RANKED], min_margin=1.0).rows
    assert _pairs(row) == [(1, 0)]


def test_groups_whose_ratings_are_equal_are_counted_and_not_refused(tokenizer) -> None:
    part = _part(tokenizer, [RANKED, {**RANKED, "ratings": [2, 2, 2]}])
    assert (part.counts["input"], part.counts["without_pairs"], part.counts["pairs"]) == (2, 1, 3)
    assert (len(part.rows), len(part.quarantined)) == (1, 0)


def test_equal_completions_of_a_ranked_list_make_no_pair(tokenizer) -> None:
    (row,) = _part(tokenizer, [{**RANKED, "completions": [" a", " b", " b"]}]).rows
    assert _pairs(row) == [(1, 0), (2, 0)]


def test_conversations_need_a_template_that_can_be_trained_on() -> None:
    row = {
        "prompt": [{"role": "user", "content": "which?"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        _part(tokenizer, [row])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(ModelError, match="not prefix-stable"):
        _part(tokenizer, [row])


def test_a_conversation_is_rendered_with_its_system_prompt(tokenizer, encoder: Encoder) -> None:
    turns = {"conversations": [{"from": "human", "value": "which?"}]}
    pair = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    (row,) = _part(tokenizer, [{**turns, **pair}], system_prompt="brief").rows
    assert row["prompt"] == "<s>[system] brief\n[user] which?\n[assistant] "
    assert row["prompt_ids"].count(1) == 1
    assert [encoder.decode(ids) for ids in row["completions"]] == ["a</s>", "b</s>"]
    assert row["completion_texts"] == ["a", "b"]


def test_long_completions_follow_the_policy(tokenizer, encoder: Encoder) -> None:
    row = {**PAIR, "chosen": " good and bad and good and slow"}
    (refused,) = _part(tokenizer, [row], max_completion_tokens=4).quarantined
    assert refused["reason"] == "the completion is longer than 4 tokens"
    (cut,) = _part(tokenizer, [row], max_completion_tokens=4, too_long_completion="keep_start").rows
    assert len(cut["completions"][0]) == 4
    assert 2 not in cut["completions"][0]
    assert cut["completions"][1][-1] == 2
    assert cut["completion_texts"][0] == encoder.decode(cut["completions"][0])


def test_a_cut_that_makes_both_sides_equal_refuses_the_pair(tokenizer) -> None:
    row = {"prompt": "the", "chosen": " good and good bad", "rejected": " good and good slow"}
    (refused,) = _part(
        tokenizer, [row], max_completion_tokens=2, too_long_completion="keep_start"
    ).quarantined
    assert refused["reason"] == "chosen equals rejected, as tokens"


def test_equal_groups_stay_apart_and_share_their_prompt(tokenizer) -> None:
    part = _part(tokenizer, [PAIR, PAIR, {**PAIR, "chosen": " great"}])
    groups = [row["group_id"] for row in part.rows]
    assert groups[1] == f"{groups[0]}-2"
    assert len(set(groups)) == 3
    assert len({row["prompt_id"] for row in part.rows}) == 1


def test_a_refused_row_between_good_ones_shifts_nothing(tokenizer, encoder: Encoder) -> None:
    """Texts are tokenized in one batch: each must come back to its own row."""
    rows = [{**PAIR, "chosen": f" good {i}"} for i in range(5)]
    rows[1] = {**PAIR, "chosen": ""}
    rows[3] = {**PAIR, "chosen": " good</s> and"}
    part = _part(tokenizer, rows)
    assert [encoder.decode(row["completions"][0]) for row in part.rows] == [
        " good 0</s>",
        " good 2</s>",
        " good 4</s>",
    ]
    assert [row["row"].count(" good</s> and") for row in part.quarantined] == [0, 1]


def test_unknown_columns_are_an_error_that_lists_them(tokenizer) -> None:
    with pytest.raises(DataError, match="has the columns answer, question"):
        _part(tokenizer, [{"question": "a", "answer": "b"}])
    with pytest.raises(DataError, match="ids stand in column 'nothing'"):
        _part(tokenizer, [PAIR], id_column="nothing")


def _config(model: Path, path: str, **section: Any) -> Config:
    preferences = PreferencesConfig(
        path=path, **{"max_prompt_tokens": 64, "max_completion_tokens": 64, **section}
    )
    return Config(
        name="x",
        model=str(model),  # pyright: ignore[reportArgumentType]
        preferences=preferences,
        rows_per_part=4,
        max_quarantined_fraction=0.5,
    )


def test_the_stage_accounts_for_every_row(tiny_model: Path, write_jsonl, tmp_path: Path) -> None:
    rows: list[Any] = [{**PAIR, "id": str(i)} for i in range(9)]
    rows[2] = b"\xff"
    rows[5]["rejected"] = rows[5]["chosen"]
    rows[7]["id"] = "0"
    config = _config(tiny_model, write_jsonl(rows), id_column="id")
    table = run_preferences_stage(config, place_in(config, folder_of(str(tmp_path)), "out"))
    groups = [row["group_id"] for row in read_rows(table.folder, table.manifest)]
    refused = [row["id"] for row in read_quarantine(table.folder, table.manifest)]
    assert groups == ["0", "1", "3", "4", "6", "8"]
    assert refused == ["row-2", "5", "row-7"]
    assert table.manifest["counts"] == {
        "input": 9,
        "without_pairs": 0,
        "pairs": 6,
        "soft_labels": 0,
        "rankings": 6,
        "rankings_with_ties": 0,
        "output": 6,
        "quarantined": 3,
    }
    assert table.manifest["parts"] == 3


def test_zero_pairs_are_an_error(tiny_model: Path, write_jsonl, tmp_path: Path) -> None:
    config = _config(tiny_model, write_jsonl([{**RANKED, "ratings": [1, 1, 1]}]))
    with pytest.raises(DataError, match="1 rows were read, and none is left"):
        run_preferences_stage(config, place_in(config, folder_of(str(tmp_path)), "out"))


def test_lengths_that_do_not_fit_are_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, "missing.jsonl", max_completion_tokens=193)
    with pytest.raises(ConfigError, match="= 257 tokens"):
        run_preferences_stage(config, place_in(config, folder_of(str(tmp_path)), "out"))
