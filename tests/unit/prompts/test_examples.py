"""SFT examples: which tokens carry loss, how long texts are cut, and where every row went."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import Config, ModelConfig, SftConfig
from raydpo.core.errors import ConfigError, DataError, QuarantineBudgetError
from raydpo.core.run import PartResult, read_quarantine
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row
from raydpo.pipeline.round import place_in
from raydpo.prompts.encode import Encoder
from raydpo.prompts.examples import example_parts, run_examples_stage
from raydpo.prompts.sources import SourceRow, source_rows

BOS, EOS = 1, 2


def _rows(*rows: dict[str, Any]) -> list[SourceRow]:
    return [SourceRow(index, row, None) for index, row in enumerate(rows)]


def examples(sft: SftConfig, tokenizer: Any, rows: Iterable[SourceRow]) -> list[Row]:
    """The rows of the table alone."""
    parts = example_parts(sft, rows, tokenizer, rows_per_part=1024)
    return [row for part in parts for row in part.rows]


def _part(tokenizer, sft: SftConfig, *rows: dict[str, Any]) -> PartResult:
    (part,) = example_parts(sft, _rows(*rows), tokenizer, 100)
    return part


def _sft(**values: Any) -> SftConfig:
    return SftConfig(data="unread", **{"max_sequence_tokens": 64, **values})


def test_a_full_text_has_bos_and_eos_once_and_loss_everywhere(tokenizer, encoder: Encoder) -> None:
    (row,) = examples(_sft(loss_on="all"), tokenizer, _rows({"text": "the film was good"}))
    assert row["token_ids"][0] == BOS
    assert row["token_ids"][-1] == EOS
    assert encoder.decode(row["token_ids"]) == "<s>the film was good</s>"
    assert row["prompt_tokens"] == 0


@pytest.mark.parametrize("length", [2, 7, 64])
def test_a_long_text_is_cut_into_pieces_and_nothing_is_lost(
    tokenizer, encoder: Encoder, length: int
) -> None:
    text = "the film was good and the plot was awful " * 9
    sft = _sft(loss_on="all", max_sequence_tokens=length)
    rows = list(examples(sft, tokenizer, _rows({"text": text})))
    pieces = [row["token_ids"] for row in rows]
    whole = [token for piece in pieces for token in piece]
    assert encoder.decode(whole) == f"<s>{text}</s>"
    assert (whole.count(BOS), whole.count(EOS)) == (1, 1)
    assert all(len(piece) == length for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= length
    assert len({row["example_id"] for row in rows}) == len(rows)


def test_completion_only_bears_no_loss_on_the_prompt(tokenizer, encoder: Encoder) -> None:
    (row,) = examples(_sft(), tokenizer, _rows({"prompt": "the film", "completion": " was good"}))
    start = row["prompt_tokens"]
    assert encoder.decode(row["token_ids"][:start]) == "<s>the film"
    assert encoder.decode(row["token_ids"][start:]) == " was good</s>"


def test_messages_train_on_the_last_turn_only(tokenizer, encoder: Encoder) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    (row,) = examples(_sft(), tokenizer, _rows({"messages": messages}))
    start = row["prompt_tokens"]
    assert encoder.decode(row["token_ids"][start:]) == "four</s>"
    assert encoder.decode(row["token_ids"][:start]).endswith("[user] three\n[assistant] ")


def test_every_assistant_turn_is_trained_when_asked(tokenizer, encoder: Encoder) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    data = _rows({"messages": messages}, {"prompt": "the film", "completion": " was good"})
    rows = list(examples(_sft(loss_on="assistant"), tokenizer, data))
    texts = [
        (encoder.decode(ids[:start]), encoder.decode(ids[start:]))
        for ids, start in ((row["token_ids"], row["prompt_tokens"]) for row in rows)
    ]
    first = "<s>[user] one\n[assistant] "
    assert texts == [
        (first, "two</s>"),
        (f"{first}two</s>\n[user] three\n[assistant] ", "four</s>"),
        ("<s>the film", " was good</s>"),
    ]
    assert rows[0]["example_id"] == f"{rows[1]['example_id']}:turn-0"


def test_instructions_are_user_messages_where_the_model_chats(tokenizer, encoder: Encoder) -> None:
    row = {"instruction": "Sum up.", "input": "a film", "output": "good"}
    (made,) = examples(_sft(), tokenizer, _rows(row))
    text = encoder.decode(made["token_ids"])
    assert text == "<s>[user] Sum up.\na film\n[assistant] good</s>"


def test_instructions_have_headings_where_it_does_not(spacing_tokenizer) -> None:
    rows = _rows({"instruction": "Sum up.", "input": "", "output": "good"})
    (made,) = examples(_sft(), spacing_tokenizer, rows)
    start = made["prompt_tokens"]
    assert spacing_tokenizer.decode(made["token_ids"][start:]) == "good</s>"
    assert "Instruction" in spacing_tokenizer.decode(made["token_ids"][:start])


def test_a_long_completion_follows_the_policy(tokenizer) -> None:
    row = {"prompt": "the film", "completion": " was good" * 99}
    part = _part(tokenizer, _sft(), row)
    assert part.quarantined[0]["reason"].startswith("the completion is longer")
    (cut,) = _part(tokenizer, _sft(too_long="keep_start"), row).rows
    assert len(cut["token_ids"]) == 64
    assert EOS not in cut["token_ids"]
    with pytest.raises(DataError):
        _part(tokenizer, _sft(too_long="error"), row)


def test_a_prompt_that_leaves_no_room_is_refused_and_never_cut(tokenizer) -> None:
    row = {"prompt": "the film " * 99, "completion": " was good"}
    part = _part(tokenizer, _sft(too_long="keep_start"), row)
    assert [r["reason"] for r in part.quarantined] == ["the prompt is longer than 63 tokens"]


def test_refused_rows_are_counted_and_equal_rows_stay_apart(tokenizer) -> None:
    good = {"prompt": "the film", "completion": " was good"}
    rows = [good, good, {"prompt": "x", "completion": ""}, {"prompt": 3, "completion": "x"}, {}]
    part = _part(tokenizer, _sft(), *rows)
    assert part.counts == {"input": 5, "used": 2}
    ids = [row["example_id"] for row in part.rows]
    assert ids[1] == f"{ids[0]}-2"
    assert [row["reason"] for row in part.quarantined] == [
        "empty completion",
        "the prompt is neither text nor a list of messages",
        "none of the layouts' columns",
    ]


@pytest.mark.parametrize(
    ("loss_on", "row"), [("all", {"body": "x"}), ("completion", {"text": "x"})]
)
def test_wrong_columns_are_an_error_that_lists_them(
    tokenizer, loss_on: str, row: dict[str, str]
) -> None:
    with pytest.raises(DataError, match=f"has the columns {next(iter(row))}"):
        _part(tokenizer, _sft(loss_on=loss_on), row)


def _config(model: Path, data: str, **values: Any) -> Config:
    sft = SftConfig(data=data, loss_on="all", **{"max_sequence_tokens": 32, **values})
    return Config(name="x", model=ModelConfig(path=str(model)), sft=sft, rows_per_part=1)


def test_the_stage_writes_parts_and_a_manifest(
    tiny_model: Path, write_jsonl, tmp_path: Path
) -> None:
    data = write_jsonl([{"text": f"the film was good {i}"} for i in range(40)])
    config = _config(tiny_model, data)
    place = place_in(config, folder_of(str(tmp_path)), "out")
    table = run_examples_stage(config, place)
    assert table.manifest["parts"] == 3  # 16 rows each
    assert table.manifest["counts"] == {"input": 40, "used": 40, "output": 40, "quarantined": 0}
    again = run_examples_stage(config, place)
    assert again.manifest == table.manifest


def test_the_stage_goes_on_where_it_was_stopped(
    tiny_model: Path, write_jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl([{"text": f"the film was good {i}"} for i in range(40)])
    config = _config(tiny_model, data)
    whole = run_examples_stage(config, place_in(config, folder_of(str(tmp_path)), "whole"))
    from raydpo.core import on_driver

    written: list[int] = []
    write_part = on_driver.write_part

    def stopping(stage, index, result):
        if index == 1 and not written.count(-1):
            written.append(-1)
            raise KeyboardInterrupt
        written.append(index)
        return write_part(stage, index, result)

    monkeypatch.setattr(on_driver, "write_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_examples_stage(config, place_in(config, folder_of(str(tmp_path)), "out"))
    table = run_examples_stage(config, place_in(config, folder_of(str(tmp_path)), "out"))
    assert written == [0, -1, 1, 2]
    assert table.fingerprint == whole.fingerprint


def test_the_stage_stops_over_the_budget_and_is_not_done(
    tiny_model: Path, write_jsonl, tmp_path: Path
) -> None:
    data = write_jsonl([b"\xff", *[{"text": f"good {i}"} for i in range(40)]])
    folder, config = folder_of(str(tmp_path)), _config(tiny_model, data)
    for _ in range(2):
        with pytest.raises(QuarantineBudgetError):
            run_examples_stage(config, place_in(config, folder, "out"))
    generous = config.model_copy(update={"max_quarantined_fraction": 0.1})
    table = run_examples_stage(generous, place_in(generous, folder, "out"))
    (refused,) = read_quarantine(table.folder, table.manifest)
    assert (refused["id"], refused["reason"]) == ("row-0", "not UTF-8")


def test_a_length_beyond_the_model_is_refused_before_reading(tiny_model: Path, tmp_path) -> None:
    config = _config(tiny_model, "missing.jsonl", max_sequence_tokens=257)
    with pytest.raises(ConfigError, match=r"sft\.max_sequence_tokens = 257 tokens"):
        run_examples_stage(config, place_in(config, folder_of(str(tmp_path)), "out"))


def test_rows_of_a_file_become_examples(tokenizer, write_jsonl) -> None:
    path = write_jsonl([{"text": "good"}, {"text": "bad"}])
    assert len(list(examples(_sft(loss_on="all"), tokenizer, source_rows(path)))) == 2
