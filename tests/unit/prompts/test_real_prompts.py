"""Properties that hold for every row of real files, with a real tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, PreferencesConfig, PromptsConfig, SftConfig
from raydpo.core.run import PartResult
from raydpo.core.tables import EXAMPLES, PREFERENCES, PROMPTS, table_from_rows
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.encode import Encoder, make_encoder
from raydpo.prompts.examples import example_parts
from raydpo.prompts.preferences import preference_parts
from raydpo.prompts.sources import source_rows
from raydpo.prompts.stage import prompt_parts

pytestmark = pytest.mark.thorough

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def stories(stories260k: Path):
    """The tokenizer of stories260K: SentencePiece-like, BOS first; with a template of ours."""
    tokenizer = load_tokenizer(ModelConfig(path=str(stories260k), pad_token="<unk>"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _reasons(parts: list[PartResult]) -> Counter[str]:
    return Counter(row["reason"] for part in parts for row in part.quarantined)


def _ids_once(parts: list[PartResult], key: str) -> None:
    """Every input id ends in the output or in the quarantine, exactly once."""
    ids = [row[key] for part in parts for row in part.rows]
    ids += [row["id"] for part in parts for row in part.quarantined]
    assert len(ids) == len(set(ids)) == sum(part.counts["input"] for part in parts)


def _check_group(row: dict[str, Any], encoder: Encoder) -> None:
    bos, eos = encoder.prefix[0], encoder.eos_id
    assert row["prompt_ids"][0] == bos
    assert row["prompt_ids"].count(bos) == 1
    assert row["prompt_ids"][-1] != eos
    for ids in row["completions"]:
        assert (ids[-1], ids.count(eos), ids.count(bos)) == (eos, 1, 0)


def _text(encoder: Encoder, ids: list[int]) -> str:
    return encoder.decode(ids).removeprefix("<s>").removeprefix(" ").removesuffix("</s>")


def test_hh_transcripts_split_at_the_last_assistant_turn(stories, shared_data: Path) -> None:
    path = str(shared_data / "hh_rlhf" / "helpful-base.test.jsonl.gz")
    section = PreferencesConfig(path=path, max_prompt_tokens=10**6, max_completion_tokens=10**6)
    parts = list(preference_parts(section, source_rows(path), stories, 256))
    assert _reasons(parts) == {
        "the prompts of chosen and rejected differ": 9,
        "empty completion": 4,
        "chosen equals rejected": 2,
    }
    rows = [row for part in parts for row in part.rows]
    assert len(rows) == 2354 - 15
    _ids_once(parts, "group_id")
    encoder, sources = make_encoder(stories), iter(source_rows(path))
    for row in rows:
        _check_group(row, encoder)
        assert row["prompt"].endswith("\n\nAssistant:")
        whole = row["prompt"] + row["completion_texts"][0]
        source = next(s for s in sources if s.row is not None and s.row["chosen"] == whole)
        assert source.row is not None
        assert source.row["rejected"] == row["prompt"] + row["completion_texts"][1]
        if source.index % 50 == 0 and "<" not in whole:
            decoded = _text(encoder, row["prompt_ids"] + row["completions"][0])
            assert decoded == stories.decode(stories.encode(whole)[1:]).removeprefix(" ")
    table_from_rows(rows, PREFERENCES)


def test_share_gpt_pairs_are_all_used(stories, shared_data: Path) -> None:
    path = str(shared_data / "llamafactory" / "dpo_en_demo.json")
    section = PreferencesConfig(path=path, max_prompt_tokens=10**6, max_completion_tokens=10**6)
    parts = list(preference_parts(section, source_rows(path), stories, 64))
    rows = [row for part in parts for row in part.rows]
    assert (len(rows), sum(_reasons(parts).values())) == (300, 0)
    _ids_once(parts, "group_id")
    encoder = make_encoder(stories)
    for row in rows:
        _check_group(row, encoder)
        assert row["prompt"].startswith(("<s><user>", "<s><system>"))
        assert row["prompt"].endswith("\n<assistant>")


def test_cut_groups_keep_every_limit(stories, shared_data: Path) -> None:
    path = str(shared_data / "llamafactory" / "dpo_en_demo.json")
    section = PreferencesConfig(
        path=path,
        max_prompt_tokens=100,
        max_completion_tokens=50,
        too_long_prompt="keep_end",
        too_long_completion="keep_start",
    )
    parts = list(preference_parts(section, source_rows(path), stories, 64))
    rows = [row for part in parts for row in part.rows]
    assert _reasons(parts) == {
        "chosen equals rejected, as tokens": 6,
        # Their instructions alone are too long, and a cut would change what is asked.
        "the prompt is longer than 100 tokens even without the words of its last message": 42,
    }
    assert len(rows) == 300 - 6 - 42
    for row in rows:
        assert len(row["prompt_ids"]) <= 100
        assert row["prompt_ids"][0] == 1
        for ids in row["completions"]:
            assert len(ids) <= 50
            assert (ids[-1] == 2) or len(ids) == 50


@pytest.mark.parametrize(
    ("pattern", "column", "count"),
    [
        ("self_instruct_*.jsonl", "instruction", 175),
        ("user_oriented_*.jsonl", "instruction", 252),
    ],
)
def test_prompt_sets(stories, shared_data: Path, pattern: str, column: str, count: int) -> None:
    section = PromptsConfig(
        path=str(shared_data / "prompts" / pattern),
        column=column,
        id_column="id",
        max_prompt_tokens=10**6,
    )
    parts = list(prompt_parts(section, source_rows(section.path), stories, 50))
    rows = [row for part in parts for row in part.rows]
    assert len(rows) == count
    _ids_once(parts, "prompt_id")
    encoder = make_encoder(stories)
    for row in rows:
        assert row["prompt_ids"][0] == 1
        assert 2 not in row["prompt_ids"]
        assert _text(encoder, row["prompt_ids"]) == row["prompt"].removeprefix(" ")
    table_from_rows(rows, PROMPTS)


def test_turns_that_are_no_prompt_are_refused_by_name(stories, shared_data: Path) -> None:
    section = PromptsConfig(path=str(shared_data / "prompts" / "vicuna*"), column="turns")
    parts = list(prompt_parts(section, source_rows(section.path), stories, 50))
    assert _reasons(parts) == {"the prompt is neither text nor a list of messages": 80}


def test_reviews_become_pieces_that_hold_every_character(stories, shared_data: Path) -> None:
    path = str(shared_data / "imdb" / "train.jsonl.gz")
    sft = SftConfig(data=path, loss_on="all", max_sequence_tokens=128)
    sources = list(source_rows(path, limit=100))
    parts = list(example_parts(sft, sources, stories, 32))
    rows = [row for part in parts for row in part.rows]
    encoder = make_encoder(stories)
    pieces: dict[str, list[int]] = {}
    for row in rows:
        assert len(row["token_ids"]) <= 128
        pieces.setdefault(row["example_id"].split(":")[0], []).extend(row["token_ids"])
    assert len(pieces) == 100
    for ids, source in zip(pieces.values(), sources, strict=True):
        assert (ids[0], ids[-1], ids.count(1), ids.count(2)) == (1, 2, 1, 1)
        assert source.row is not None
        assert _text(encoder, ids) == source.row["text"]
    table_from_rows(rows, EXAMPLES)


def test_instructions_bear_loss_on_their_output_only(stories, shared_data: Path) -> None:
    path = str(shared_data / "llamafactory" / "alpaca_en_demo.json")
    sft = SftConfig(data=path, max_sequence_tokens=10**6)
    sources = list(source_rows(path))
    parts = list(example_parts(sft, sources, stories, 500))
    rows = [row for part in parts for row in part.rows]
    assert len(rows) + sum(_reasons(parts).values()) == len(sources) == 999
    encoder = make_encoder(stories)
    by_output = Counter(source.row["output"] for source in sources if source.row)
    for row in rows[:300]:
        text = encoder.decode(row["token_ids"][row["prompt_tokens"] :])
        assert text.endswith("</s>")
        assert by_output[text.removesuffix("</s>")] or "⁇" in text or "\ufffd" in text
