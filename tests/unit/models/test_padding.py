"""A tokenizer without a padding token gets a safe one of its own, and keeps it when saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.loading import load_tokenizer
from raydpo.models.padding import describe_chosen
from tests.conftest import make_tokenizer


def model_without_padding(folder: Path, special: list[str], pad_id: int | None = None) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    values = {"model_type": "llama", "pad_token_id": pad_id}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("special", "pad_id", "chosen"),
    [
        (["<|reserved_0|>", "<|right_pad_id|>"], None, "<pad>"),
        (["<|reserved_0|>", "<|mask|>"], 321, "<|mask|>"),
        (["<|reserved_0|>"], 2, "<pad>"),  # 2 ends a text
        (["<|reserved_0|>"], 99_999, "<pad>"),  # no token of the tokenizer
    ],
)
def test_the_safest_token_is_taken(
    tmp_path: Path, special: list[str], pad_id: int | None, chosen: str
) -> None:
    folder = model_without_padding(tmp_path, special, pad_id)
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    assert tokenizer.pad_token == chosen
    assert repr(chosen) in str(describe_chosen(tokenizer))
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token == chosen


def test_the_unknown_token_and_at_last_the_end_token_pad(stories260k: Path, tmp_path: Path) -> None:
    assert load_tokenizer(ModelConfig(path=str(stories260k))).pad_token == "<unk>"
    folder = model_without_padding(tmp_path, [])
    text = (folder / "tokenizer.json").read_text().replace("<pad>", "<eins>")
    (folder / "tokenizer.json").write_text(text)
    assert load_tokenizer(ModelConfig(path=str(folder))).pad_token == "</s>"


def test_a_tokenizer_without_special_tokens_has_to_be_told(tmp_path: Path) -> None:
    folder = model_without_padding(tmp_path, [])
    values = json.loads((folder / "tokenizer.json").read_text())
    values["added_tokens"] = []
    values["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"no special token that could be one"):
        load_tokenizer(ModelConfig(path=str(folder)))
    assert load_tokenizer(ModelConfig(path=str(folder), pad_token="<pad>")).pad_token == "<pad>"


def test_a_padding_token_of_its_own_is_left_alone(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    assert (tokenizer.pad_token, describe_chosen(tokenizer)) == ("<pad>", None)
