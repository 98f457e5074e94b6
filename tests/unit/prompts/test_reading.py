"""Many rows decide how a source is read; the key contains what would change its meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import Config, ModelConfig, PreferencesConfig, PromptsConfig, SftConfig
from raydpo.core.place import Place
from raydpo.core.storage import folder_of
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.reading import later_readings
from raydpo.prompts.stage import run_prompts_stage
from tests.unit.prompts.conftest import WriteJsonl
from tests.unit.prompts.test_beside import BAD, GOOD, USER, examples, preferences, prompts

PAIR = {"prompt": "which?", "chosen": " a", "rejected": " b"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
REPEATED = {"prompt": "Why?", "chosen": "Why? So.", "rejected": "Why? No."}


@pytest.mark.parametrize(
    "odd",
    [
        {"chosen": 3, "rejected": None},
        {"prompt": "x", "completions": [], "ratings": []},
        {"chosen": [{"role": None, "content": 3}], "rejected": [], "prompt": "x"},
        {"other": 1},
    ],
)
def test_a_bad_first_row_costs_itself_alone(tokenizer, odd: dict[str, Any]) -> None:
    part = preferences(tokenizer, odd, PAIR, {**PAIR, "chosen": " c"})
    assert [len(part.rows), len(part.quarantined)] == [2, 1]
    assert part.quarantined[0]["id"] == "row-0"


@pytest.mark.parametrize("read", [prompts, examples])
def test_columns_that_the_first_row_lacks_are_found(tokenizer, read: Callable[..., Any]) -> None:
    part = read(tokenizer, {"other": 1}, {"prompt": "which?", "completion": " a"})
    assert [len(part.rows), len(part.quarantined)] == [1, 1]


def test_completions_that_repeat_their_prompts_lose_them(tokenizer) -> None:
    (row,) = preferences(tokenizer, REPEATED).rows
    assert (row["prompt"], row["completion_texts"]) == ("Why?", [" So.", " No."])
    ranked = {"prompt": "Why?", "completions": ["Why? a", "Why? b"], "ratings": [1, 2]}
    assert preferences(tokenizer, ranked).rows[0]["completion_texts"] == [" a", " b"]
    judged = [{"prompt": p, "completion": f"{p} a", "label": True} for p in ("Why?", "Who?")]
    assert preferences(tokenizer, *judged).rows[0]["completion_texts"][0] == " a"
    (made,) = examples(tokenizer, {"prompt": "Why?", "completion": "Why? So."}).rows
    assert tokenizer.decode(made["token_ids"]) == "<s>Why? So.</s>"


def test_half_a_repetition_refuses_the_row(tokenizer) -> None:
    part = preferences(tokenizer, REPEATED, REPEATED, {**REPEATED, "rejected": "No."})
    assert part.quarantined[0]["reason"] == "some completions repeat the prompt, and others do not"
    empty = {**REPEATED, "rejected": "Why? "}
    part = preferences(tokenizer, REPEATED, empty)
    assert part.quarantined[0]["reason"].startswith("empty completion, after the prompt")


def test_completions_that_begin_alike_by_chance_stay_as_they_are(tokenizer) -> None:
    letters = {"prompt": "a", "chosen": "and", "rejected": "also"}
    assert preferences(tokenizer, letters).rows[0]["completion_texts"] == ["and", "also"]
    (row, *_) = preferences(tokenizer, REPEATED, PAIR, {**PAIR, "chosen": " c"}).rows
    assert row["completion_texts"] == ["Why? So.", "Why? No."]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (PAIR, []),
        (CHAT, []),
        ({**PAIR, "system": "", "tools": None, "history": []}, []),
        ({**CHAT, "tools": [{"a": 1}], "system": "x"}, ["system", "tools"]),
        ({**CHAT, "chosen": [{**GOOD, "reasoning_content": "x"}]}, ["reasoning_content"]),
        ({**CHAT, "prompt": str([USER])}, ["messages as JSON text"]),
        (REPEATED, ["repeated prompt"]),
        ({"question": "x", "chosen": "a", "rejected": "b"}, ["question"]),
    ],
)
def test_what_was_not_read_before_stands_in_the_key(
    write_jsonl: WriteJsonl, row: Any, found: list[str]
) -> None:
    section = PreferencesConfig(path=write_jsonl([row]))
    assert later_readings(section, None) == ({"later_readings": found} if found else {})


def test_a_system_prompt_beside_plain_text_stands_in_the_key(write_jsonl: WriteJsonl) -> None:
    plain, chat = write_jsonl([PAIR], "plain.jsonl"), write_jsonl([CHAT], "chat.jsonl")
    found = later_readings(PreferencesConfig(path=plain), "brief")
    assert found == {"later_readings": ["system_prompt beside plain text"]}
    assert later_readings(PreferencesConfig(path=chat), "brief") == {}


@pytest.mark.parametrize(("beside", "named"), [({}, False), ({"system": "brief"}, True)])
def test_each_stage_has_it_in_its_manifest(
    tiny_model: Path, write_jsonl: WriteJsonl, tmp_path: Path, beside: Any, named: bool
) -> None:
    path = write_jsonl([{**CHAT, "completion": [GOOD], **beside}])
    lengths = {"max_prompt_tokens": 64, "max_completion_tokens": 64}
    asked = PromptsConfig(path=path, max_prompt_tokens=64)
    config = Config(
        name="x",
        model=ModelConfig(path=str(tiny_model)),
        preferences=PreferencesConfig(path=path, **lengths),
        sft=SftConfig(data=path, max_sequence_tokens=64),
        sampling={"max_completion_tokens": 64},  # pyright: ignore[reportArgumentType]
    )
    folders = [folder_of(str(tmp_path / name)) for name in ("prompts", "preferences", "examples")]
    tables = [
        run_prompts_stage(config, asked, Place(folders[0], "prompts")),
        run_preferences_stage(config, Place(folders[1], "preferences")),
        run_examples_stage(config, Place(folders[2], "test")),
    ]
    for table in tables:
        assert ("later_readings" in table.manifest["settings"]) is named
