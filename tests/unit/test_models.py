"""Models are loaded from safetensors only, and without running code that they bring."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from raydpo.config import ModelConfig
from raydpo.errors import ModelError
from raydpo.models import (
    load_causal_lm,
    load_tokenizer,
    local_folder,
    missing_weights,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from tests.conftest import make_tiny_model


def test_model_saved_as_a_pickle_is_refused(tmp_path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_causal_lm(ModelConfig(path=str(folder)))


def test_model_that_asks_to_run_its_own_code_is_refused(tmp_path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ModelError, match="auto_map"):
            load(ModelConfig(path=str(folder)))


def test_fingerprint_follows_the_weights_and_not_the_name(tmp_path) -> None:
    one = ModelConfig(path=str(make_tiny_model(tmp_path / "one", seed=0)))
    same = ModelConfig(path=str(make_tiny_model(tmp_path / "same", seed=0)))
    other = ModelConfig(path=str(make_tiny_model(tmp_path / "other", seed=1)))
    assert weights_fingerprint(one) == weights_fingerprint(same) != weights_fingerprint(other)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    padded = one.model_copy(update={"pad_token": "</s>"})
    assert tokenizer_fingerprint(padded) != tokenizer_fingerprint(one)


def test_model_behind_a_uri_that_was_trained_again_is_downloaded_again(tmp_path) -> None:
    model = ModelConfig(path=f"file://{make_tiny_model(tmp_path / 'model', seed=0)}")
    before = local_folder(model)
    assert local_folder(model) == before
    make_tiny_model(tmp_path / "model", seed=1)  # files of the same names and sizes
    assert local_folder(model) != before
    assert weights_fingerprint(model) == weights_fingerprint(
        ModelConfig(path=str(tmp_path / "model"))
    )


def test_padding_token_comes_from_the_configuration(stories260k) -> None:
    config = ModelConfig(path=str(stories260k), pad_token="<s>")
    assert load_tokenizer(config).pad_token == "<s>"
    with pytest.raises(ModelError, match=r"model\.pad_token 'nothing'"):
        load_tokenizer(config.model_copy(update={"pad_token": "nothing"}))


def test_weights_are_missing_where_transformers_would_make_them_up(tiny_model) -> None:
    model = ModelConfig(path=str(tiny_model))
    weights = {"model.embed_tokens.weight", "model.norm.weight"}
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    without_prefix = {name.removeprefix("model.") for name in weights}
    assert missing_weights(model, weights | old, without_prefix) == set()
    assert missing_weights(model, without_prefix, weights) == set()
    lacking = {"model.embed_tokens.weight"}
    assert missing_weights(model, weights | old, lacking) == {"model.norm.weight"}


def test_a_bias_is_no_buffer_because_its_name_looks_like_one(tmp_path) -> None:
    """GPT-2's pattern for its old masks matches the name of a real bias."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab_size=32, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    model = ModelConfig(path=str(tmp_path / "gpt2"))
    bias, mask = "transformer.h.0.attn.c_attn.bias", "h.0.attn.bias"
    assert missing_weights(model, {bias, mask}, set()) == {bias}
