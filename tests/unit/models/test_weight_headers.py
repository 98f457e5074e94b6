"""Missing, extra or misshapen weights are named: at a load, and from headers alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.files import TensorHeader
from raydpo.models.loading import (
    CAUSAL_LM,
    CLASSIFIER,
    SCALAR_HEAD,
    Kind,
    check_weights,
    load_causal_lm,
    load_model,
    load_scalar_head,
    meta_model,
)
from raydpo.models.weights import loading_report
from tests.conftest import make_tiny_model

pytestmark = pytest.mark.thorough

Weights = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., ModelConfig]:
    """A saved model with other weights in its file, and other values in its config.json."""

    def make(model: Any, change: Callable[[Weights], Weights], **config: Any) -> ModelConfig:
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        weights = change(load_file(folder / "model.safetensors"))
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **config}))
        return ModelConfig(path=str(folder))

    return make


def qwen() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))


def reward_model(**config: Any) -> Any:
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1, **config))


def keep(weights: Weights) -> Weights:
    return {name: weight.clone() for name, weight in weights.items()}


def refusal(model: ModelConfig, kind: Kind) -> ModelError:
    """What a check of the headers and a load say: the same."""
    with pytest.raises(ModelError) as by_headers:
        check_weights(model, kind)
    with pytest.raises(ModelError) as by_loading:
        load_model(model, kind)
    assert str(by_headers.value) == str(by_loading.value)
    return by_headers.value


def accepted(model: ModelConfig, kind: Kind) -> Any:
    check_weights(model, kind)
    return load_model(model, kind)


def test_missing_biases_are_named(broken) -> None:
    model = broken(qwen(), lambda w: {k: v for k, v in w.items() if not k.endswith(".bias")})
    assert "missing: model.layers.0.self_attn.k_proj.bias" in refusal(model, CAUSAL_LM).value
    assert "and 2 more" in refusal(model, CAUSAL_LM).value


def test_biases_that_have_no_place_are_named(broken, tmp_path: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    tiny = load_causal_lm(ModelConfig(path=str(make_tiny_model(tmp_path / "tiny", seed=0))))
    problem = refusal(broken(tiny, lambda w: {**w, **bias}), CAUSAL_LM)
    assert "no place for: model.layers.0.self_attn.q_proj.bias" in problem.value


@pytest.mark.parametrize(
    ("prefix", "way_out"),
    [
        ("_orig_mod.", "`model._orig_mod`"),
        ("module.", "`model.module`"),
        ("base_model.model.", "`merge_and_unload()`"),
    ],
)
def test_the_prefix_of_a_wrapper_says_what_to_save(broken, prefix: str, way_out: str) -> None:
    problem = refusal(broken(qwen(), lambda w: {prefix + k: v for k, v in w.items()}), CAUSAL_LM)
    assert f"no place for: {prefix}lm_head.weight" in problem.value
    assert way_out in problem.way_out


def test_a_resized_embedding_says_which_vocabulary_it_has(broken) -> None:
    ends = ("embed_tokens.weight", "lm_head.weight")
    longer = lambda w: {k: torch.cat([v, v[:8]]) if k.endswith(ends) else v for k, v in w.items()}  # noqa: E731
    problem = refusal(broken(qwen(), longer), CAUSAL_LM)
    assert "model.embed_tokens.weight [48, 32], not [40, 32]" in problem.value
    assert "vocab_size in config.json to 48" in problem.way_out


def test_empty_tensors_are_of_zero_3(broken) -> None:
    empty = lambda w: {k: v.flatten()[:0] if "layers" in k else v for k, v in w.items()}  # noqa: E731
    problem = refusal(broken(qwen(), empty), CAUSAL_LM)
    assert "model.layers.0.input_layernorm.weight [0], not [32]" in problem.value
    assert "ZeRO-3" in problem.way_out


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_stored_as_other_numbers_are_named(broken, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    problem = refusal(broken(qwen(), lambda w: {**w, name: w[name].to(dtype)}), CAUSAL_LM)
    assert name in problem.value
    assert "dequantize" in problem.way_out


def test_a_classifier_without_its_head_is_refused(broken) -> None:
    other = lambda w: {"value_head.weight" if k == "score.weight" else k: v for k, v in w.items()}  # noqa: E731
    problem = refusal(broken(reward_model(), other), CLASSIFIER)
    assert "missing: score.weight; no place for: value_head.weight" in problem.value


def test_a_head_of_two_numbers_is_no_reward_model_s(broken) -> None:
    two = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=2))
    assert "score.weight [2, 32], not [1, 32]" in refusal(broken(two, keep), SCALAR_HEAD).value


def test_a_reward_model_starts_with_a_head_of_zeros_or_its_own(broken, tiny_model: Path) -> None:
    check_weights(ModelConfig(path=str(tiny_model)), SCALAR_HEAD)
    assert not load_scalar_head(ModelConfig(path=str(tiny_model))).score.weight.any()
    own = reward_model()
    loaded = load_scalar_head(broken(own, keep))
    assert torch.equal(loaded.score.weight, own.score.weight)


def test_a_reward_model_is_no_policy(broken) -> None:
    problem = refusal(broken(reward_model(tie_word_embeddings=False), keep), CAUSAL_LM)
    assert "missing: lm_head.weight; no place for: score.weight" in problem.value


def test_layers_that_a_classifier_does_not_use_are_left_alone(broken) -> None:
    head = {"lm_head.weight": torch.ones(40, 32)}
    accepted(broken(reward_model(), lambda w: {**w, **head}), CLASSIFIER)


def test_an_encoder_s_classifier_loads(broken) -> None:
    bert = BertForSequenceClassification(BertConfig(**SIZES, num_labels=2))
    old = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    accepted(broken(bert, lambda w: {**w, **old}), CLASSIFIER)


def test_files_of_the_hub_without_the_inner_prefix_load(broken) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab_size=32, n_positions=16)
    gpt2 = GPT2LMHeadModel(config).eval()
    masks = {"h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8)}
    short = lambda w: {**{k.removeprefix("transformer."): v for k, v in w.items()}, **masks}  # noqa: E731
    loaded = accepted(broken(gpt2, short), CAUSAL_LM)
    ids = torch.arange(5)[None]
    assert torch.equal(loaded(ids).logits, gpt2(ids).logits)


def test_a_bias_is_no_buffer_because_its_name_looks_like_one(broken) -> None:
    """GPT-2's pattern for its old masks matches the name of a real bias."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab_size=32, n_positions=16)
    bias = "transformer.h.0.attn.c_attn.bias"
    without = lambda w: {k: v for k, v in w.items() if k != bias}  # noqa: E731
    assert f"missing: {bias}" in refusal(broken(GPT2LMHeadModel(config), without), CAUSAL_LM).value


def test_old_buffers_of_pythia_are_left_alone(broken) -> None:
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
    layer = "gpt_neox.layers.0.attention."
    old = {
        f"{layer}rotary_emb.inv_freq": torch.ones(4),
        f"{layer}bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
        f"{layer}masked_bias": torch.tensor(-1e9),
    }
    accepted(broken(neox, lambda w: {**w, **old}), CAUSAL_LM)


def test_experts_that_transformers_merges_load(broken) -> None:
    """Files hold a tensor for each expert, the model one for all: transformers' own mapping."""
    mixtral = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))
    accepted(broken(mixtral, keep), CAUSAL_LM)
    gone = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    without = lambda w: {k: v for k, v in w.items() if k != gone}  # noqa: E731
    assert f"missing: {gone}" in refusal(broken(mixtral, without), CAUSAL_LM).value


def test_tied_embeddings_stand_in_the_file_once_or_twice(broken) -> None:
    tied = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    head = "lm_head.weight"
    once = accepted(broken(tied, lambda w: {k: v for k, v in w.items() if k != head}), CAUSAL_LM)
    assert once.lm_head.weight is once.model.embed_tokens.weight


def test_an_output_layer_of_its_own_is_loaded_though_the_config_says_tied(broken) -> None:
    model = qwen()
    loaded = accepted(broken(model, keep, tie_word_embeddings=True), CAUSAL_LM)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_only_what_is_lacking_is_missing(tiny_model: Path) -> None:
    model = ModelConfig(path=str(tiny_model))
    empty = meta_model(model, CAUSAL_LM)
    shapes = {name: tuple(weight.shape) for name, weight in empty.state_dict().items()}
    held = {n.removeprefix("model."): TensorHeader("", "F32", s) for n, s in shapes.items()}
    del held["norm.weight"]
    assert loading_report(empty, held).missing == {"model.norm.weight"}
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_no_library_s_error_gets_through(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for wrong in (
        {"hidden_size": "big"},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"rope_parameters": [1]},
        {"model_type": ["llama"]},
        {"model_type": "of_tomorrow"},
        {"hidden_act": "none"},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **wrong}))
        refused = refusal_of_any_kind(ModelConfig(path=str(folder)))
        assert len(str(refused).splitlines()) == 3, wrong


def refusal_of_any_kind(model: ModelConfig) -> ModelError:
    with pytest.raises(ModelError):
        load_model(model, CAUSAL_LM)
    with pytest.raises(ModelError) as refused:
        check_weights(model, CAUSAL_LM)
    return refused.value
