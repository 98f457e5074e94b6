"""Tables of candidates made here, and a scorer as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.core.tables import Row

WORDS = ["[PAD]", "[UNK]", "[CLS]", "the", "film", "was", "good", "bad", "not", "very", "plot"]


def candidate_row(prompt_id: str, candidate: int, **changes: Any) -> Row:
    """A row of the table of candidates; every completion is another by default."""
    row = {
        "prompt_id": prompt_id,
        "candidate": candidate,
        "prompt": f"prompt {prompt_id}:",
        "prompt_ids": [1, 2],
        "completion": f" completion {candidate}",
        "completion_ids": [10 + candidate, 3],
        "sampler_token_logps": [-0.5, -0.25],
        "finish_reason": "stop",
        "seed": 7,
        "policy": "p",
    }
    return {**row, **changes}


@pytest.fixture
def make_candidate() -> Callable[..., Row]:
    return candidate_row


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[[str, list[list[Row]]], Table]:
    """Writes a finished table, a list of rows a part."""

    def make(name: str, parts: list[list[Row]]) -> Table:
        stage = Stage(Place(Folder(str(tmp_path / name)), "test"), name, name, {"test": name}, {})
        assert open_stage(stage) is None
        for index, rows in enumerate(parts):
            write_part(stage, index, PartResult(rows, counts={"input": len(rows)}))
        return Table(stage.folder, commit(stage, {}))

    return make


def save_word_tokenizer(folder: Path, max_tokens: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        model_max_length=max_tokens,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a random BERT classifier with the given labels; large weights tell texts apart."""

    def make(labels: tuple[str, ...] = ("neg", "neutral", "pos"), **overrides: Any) -> Path:
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        folder = tmp_path_factory.mktemp("classifier")
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            initializer_range=0.5,
            pad_token_id=0,
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            **overrides,
        )
        BertForSequenceClassification(config).save_pretrained(folder)
        save_word_tokenizer(folder, max_tokens=16)
        return folder

    return make
