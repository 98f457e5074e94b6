"""Malformed model folders: each JSON file damaged or of wrong types, headers of weights altered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from raydpo.check.findings import Findings
from raydpo.check.models import check_models
from raydpo.config.job import Config, ModelConfig
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.chat import check_template
from raydpo.prompts.encode import make_encoder
from tests.conftest import make_tiny_model
from tests.fuzz.fuzzing import Fuzz, allowed

pytestmark = pytest.mark.thorough

#: No large numbers: a model of a billion layers is a model, only nobody has the time.
ODD: list[Any] = [None, True, False, -1, 0, 1, 7, 1.5, "", "x", "1", [], [1], ["x"], {}, {"a": 1}]
GARBAGE = [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"[" * 5000, b'{"a": NaN}']
JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("fuzz") / "whole", seed=0)


def damaged_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Garbage, a cut file, or the same mapping with a value of another type or without a key."""
    values: dict[str, Any] = json.loads(content)
    changed = st.builds(
        lambda key, odd: json.dumps({**values, key: odd}).encode(),
        st.sampled_from([*values, "quantization_config", "auto_map", "rope_scaling", "eos_token"]),
        st.sampled_from(ODD),
    )
    without = st.sampled_from(list(values)).map(
        lambda key: json.dumps({k: v for k, v in values.items() if k != key}).encode()
    )
    cut = st.integers(0, len(content)).map(lambda end: content[:end])
    return st.one_of(changed, changed, without, cut, st.sampled_from(GARBAGE))


def damaged_weights(content: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file cut, with another length of its header, or bytes of it turned."""
    size = int.from_bytes(content[:8], "little")
    at = st.integers(0, size + 8)
    return st.one_of(
        st.integers(0, len(content)).map(lambda end: content[:end]),
        st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + content[8:]),
        st.builds(lambda start, new: content[:start] + new + content[start + len(new) :],
                  at, st.binary(min_size=1, max_size=4)),
        st.binary(max_size=40),
    )  # fmt: skip


def look_at(folder: Path) -> None:
    """All that `check` and the first steps of a run do with a model's folder."""
    config = Config.model_validate(
        {"name": "job", "model": str(folder), "preferences": "x.jsonl", "training": {}}
    )
    check_models(config, Findings())
    tokenizer = allowed(load_tokenizer, ModelConfig(path=str(folder)))
    if tokenizer is not None:
        encoder = allowed(make_encoder, tokenizer)
        allowed(check_template, tokenizer)
        if encoder is not None:
            encoder.continuations([" good"])


def copy_with(whole: Path, folder: Path, name: str, content: bytes) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", JSON_FILES)
def test_fuzz_json_files_of_a_model(fuzz: Fuzz, whole: Path, tmp_path: Path, name: str) -> None:
    content = (whole / name).read_bytes()
    fuzz(
        lambda given: look_at(copy_with(whole, tmp_path / "model", name, given)),
        damaged_json(content),
        10,
    )


def test_fuzz_weights_of_a_model(fuzz: Fuzz, whole: Path, tmp_path: Path) -> None:
    content = (whole / "model.safetensors").read_bytes()
    fuzz(
        lambda given: look_at(copy_with(whole, tmp_path / "model", "model.safetensors", given)),
        damaged_weights(content),
        10,
    )


def test_fuzz_chat_templates(fuzz: Fuzz, whole: Path, tmp_path: Path) -> None:
    pieces = st.sampled_from(
        ["{{", "}}", "{%", "%}", "{% for m in messages %}", "{% endfor %}", "{{ m.content }}",
         "{{ m['x'].y }}", "{{ 1 / 0 }}", "{{ messages[9].content }}", "{{ 'a' + 1 }}", "{% if x",
         "{{ raise_exception('no') }}", "{{ bos_token }}", "x", "\n", "{#", "{{ eos_token | int }}"]
    )  # fmt: skip
    templates = st.lists(pieces, max_size=8).map("".join)
    fuzz(
        lambda given: look_at(
            copy_with(whole, tmp_path / "model", "chat_template.jinja", given.encode())
        ),
        templates,
        10,
    )
