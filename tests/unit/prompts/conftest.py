"""Tokenizers of two kinds, made here: byte-level, and one that puts a space before texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.prompts.encode import Encoder, make_encoder
from tests.conftest import make_tokenizer

WriteJsonl = Callable[[list[Any]], str]


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level, BOS put first, with a chat template that is prefix-stable."""
    made = make_tokenizer()
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return made


@pytest.fixture(scope="session")
def encoder(tokenizer) -> Encoder:
    return make_encoder(tokenizer)


@pytest.fixture(scope="session")
def spacing_tokenizer():
    """Like SentencePiece: a text that begins without a space is given one; BOS and EOS put."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "▁\n.,:!abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    vocabulary["▁a"] = len(vocabulary)
    vocabulary["ab"] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("a", "b")]))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteJsonl:
    """Write values as JSON lines (bytes as they are); returns the path."""

    def write(values: list[Any], name: str = "rows.jsonl") -> str:
        lines = [v if isinstance(v, bytes) else json.dumps(v).encode() for v in values]
        (tmp_path / name).write_bytes(b"\n".join(lines))
        return str(tmp_path / name)

    return write
