"""Adapters: the model without them is the reference, and merging changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raydpo.config.job import LoraSettings
from raydpo.core.errors import ConfigError
from raydpo.training.lora import add_adapter, save_adapter

SETTINGS = LoraSettings(rank=4, alpha=8.0)
IDS = torch.arange(3, 19)[None]


def make_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":  # its layers are Conv1D, whose weights stand transposed
        return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2)).eval()
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(kind: str) -> PreTrainedModel:
    """A model whose adapter has moved away from 0."""
    model = make_model(kind)
    add_adapter(model, SETTINGS, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.05)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_new_adapter_changes_no_logit_and_leaves_only_itself_to_train(kind: str) -> None:
    model = make_model(kind)
    before = logits(model)
    add_adapter(model, SETTINGS, seed=1)
    assert torch.equal(logits(model), before)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_every_worker_makes_the_same_adapter_and_draws_no_random_numbers_for_it() -> None:
    state = torch.random.get_rng_state()
    one, other = make_model("llama"), make_model("llama")
    torch.random.set_rng_state(state)
    add_adapter(one, SETTINGS, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    add_adapter(other, SETTINGS, seed=1)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_model_and_loaded_adapter_give_the_trained_logits(kind: str, tmp_path) -> None:
    model = trained(kind)
    expected = logits(model)
    assert (expected - logits(make_model(kind))).abs().max() > 1e-3
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    merged = save_adapter(make_model(kind), SETTINGS, parameters, "some/base", tmp_path)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert not [name for name in merged.state_dict() if "lora" in name]
    assert saved_config(tmp_path)["base_model_name_or_path"] == "some/base"
    assert sorted(p.suffix for p in tmp_path.glob("adapter_*")) == [".json", ".safetensors"]
    loaded = PeftModel.from_pretrained(make_model(kind), str(tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, expected)


def saved_config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_unknown_target_modules_are_refused_with_the_names_there_are() -> None:
    settings = LoraSettings(target_modules=("query",))
    with pytest.raises(ConfigError, match="q_proj"):
        add_adapter(make_model("llama"), settings, seed=0)
