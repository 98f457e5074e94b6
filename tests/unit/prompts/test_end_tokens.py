"""One token ends a completion: the template's if generation stops at it, otherwise EOS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from raydpo.config.job import Config
from raydpo.core.place import Place
from raydpo.core.storage import Folder
from raydpo.prompts.dialogue import Dialogue, render
from raydpo.prompts.encode import Encoder, make_encoder
from raydpo.prompts.end_tokens import describe_end
from raydpo.prompts.preferences import existing_preferences_stage
from raydpo.prompts.rows import RefusedRow
from tests.conftest import make_tiny_model, make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer whose EOS is `</s>`, with a template that ends turns with `<|im_end|>`."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def encoder_of(folder: Path) -> Encoder:
    return make_encoder(AutoTokenizer.from_pretrained(folder))


def completion(encoder: Encoder, words: str) -> str:
    rendered = render(Dialogue(ASKED, (words,)), encoder.tokenizer)
    (ids,) = encoder.continuations(list(rendered.completions))
    return encoder.decode(encoder.finished(ids))


def stops_at(folder: Path, name: str, tokens: list[str]) -> None:
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(tokens)
    (folder / name).write_text(json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]}))


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("tokens", [["<|im_end|>"], ["</s>", "<|im_end|>"]])
def test_the_template_ends_a_turn_where_generation_stops_at_its_token(folder, name, tokens) -> None:
    stops_at(folder, name, tokens)
    encoder = encoder_of(folder)
    assert completion(encoder, "good") == "good<|im_end|>"
    assert encoder.end.settings["end_of_turn"][1] == encoder.end.turn
    assert "the chat template's, where generation stops" in said_of(encoder)


def test_eos_stands_in_place_of_a_token_at_which_nothing_stops(folder) -> None:
    encoder = encoder_of(folder)
    assert completion(encoder, "good") == "good</s>"
    assert encoder.end.settings["end_of_turn"][1] == encoder.eos_id
    assert "in place of the chat template's '<|im_end|>'" in said_of(encoder)


def said_of(encoder: Encoder) -> str:
    return describe_end(encoder.tokenizer, encoder.end) or ""


def test_a_generation_config_wins_over_the_model_config(folder) -> None:
    stops_at(folder, "config.json", ["<|im_end|>"])
    stops_at(folder, "generation_config.json", ["</s>"])
    assert completion(encoder_of(folder), "good") == "good</s>"


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"eos_token_id": {}}', "[" * 9999])
def test_a_damaged_generation_config_names_no_token(folder, content) -> None:
    (folder / "generation_config.json").write_text(content)
    assert completion(encoder_of(folder), "good") == "good</s>"


def test_plain_text_ends_with_eos_whatever_the_template_does(folder) -> None:
    stops_at(folder, "generation_config.json", ["<|im_end|>"])
    encoder = encoder_of(folder)
    (ids,) = encoder.continuations([" good"])
    assert encoder.decode(encoder.finished(ids)) == " good</s>"


def test_an_end_token_inside_the_words_is_refused(folder) -> None:
    encoder = encoder_of(folder)
    for words in ("good<|im_end|>bad", "good</s>bad"):
        with pytest.raises(RefusedRow, match="stands inside the text"):
            completion(encoder, words)


def test_a_template_that_ends_turns_with_eos_changes_nothing(encoder: Encoder) -> None:
    assert encoder.end.turn is None
    assert encoder.end.settings == {}
    assert describe_end(encoder.tokenizer, encoder.end) is None


def test_where_generation_stops_is_part_of_what_a_table_is_made_from(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", seed=0)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}')
    config = Config.model_validate(
        {"name": "job", "model": str(model), "preferences": str(tmp_path / "pairs.jsonl")}
    )

    def settings() -> dict[str, object]:
        assert config.preferences is not None
        folder = Folder(str(tmp_path / "run"))
        return existing_preferences_stage(
            config, config.preferences, Place(folder, "test")
        ).settings

    assert "end_of_turn" not in settings()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    ignored = settings()["end_of_turn"]
    stops_at(model, "generation_config.json", ["</s>", "<|im_end|>"])
    assert settings()["end_of_turn"] != ignored
