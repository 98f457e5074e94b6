"""The exported model is the one that was trained, read back from the disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.config.job import LoraSettings, ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.loading import load_causal_lm, load_scalar_head, meta_causal_lm
from raydpo.training.export import Trained, check_weights, export
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, completion_logps
from raydpo.training.lora import add_adapter
from raydpo.training.probe import LOGPS, PROBE_FILE, REWARDS
from raydpo.training.reward import TokenRewards
from raydpo.training.sharding import full_parameters

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
GROUPS = [
    Group("a", [1, 5, 80, 200], [[20, 30, 40, 2], [9, 8, 2], [7, 2]], [], None),
    Group("b", [1, 9], [[100, 101, 102, 103, 2]], [], None),
]


def moved(module: TokenLogps, seed: int = 0) -> TokenLogps:
    """As training would: every trainable parameter is another."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def trained(source: ModelConfig, module: TokenLogps, **keys: Any) -> Trained:
    rewards = isinstance(module, TokenRewards)
    with torch.no_grad():
        values = completion_logps(module, GROUPS, False, CPU)
    rows = [
        {
            "prompt_ids": group.prompt_ids,
            "completions": group.completions,
            **({REWARDS: [sum(one) for one in own]} if rewards else {LOGPS: own}),
        }
        for group, own in zip(GROUPS, values, strict=True)
    ]
    parameters = {name: p.detach().clone() for name, p in full_parameters(module).items()}
    return Trained(source, keys.get("lora"), rewards, parameters, rows)


def alone(folder: Path) -> float:
    """Largest difference between the probe and transformers, which knows nothing of raydpo."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    worst = 0.0
    for row in json.loads((folder / PROBE_FILE).read_text()):
        for completion, expected in zip(row["completions"], row[LOGPS], strict=True):
            ids = torch.tensor([row["prompt_ids"] + completion])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(row["prompt_ids"])
            found = logps[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0]
            worst = max(worst, (found - torch.tensor(expected)).abs().max().item())
    return worst


def test_an_output_layer_of_its_own_is_exported_although_the_config_said_tied(
    liar, tmp_path
) -> None:
    source = ModelConfig(path=str(liar))
    held = export(trained(source, moved(TokenLogps(load_causal_lm(source)))), tmp_path)
    assert held.largest_difference < 1e-5
    assert held.values == 4 + 3 + 5  # two completions of a group are enough
    assert alone(tmp_path / "model") < 1e-5
    assert json.loads((tmp_path / "model/config.json").read_text())["tie_word_embeddings"] is False
    names = load_file(tmp_path / "model/model.safetensors").keys()
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= names


def test_what_waits_on_meta_for_its_weights_is_untied_too(liar, tiny_model) -> None:
    for folder, tied in ((liar, False), (tiny_model, True)):
        source = ModelConfig(path=str(folder))
        for model in (load_causal_lm(source), meta_causal_lm(source)):
            assert model.config.tie_word_embeddings is tied
            assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_a_file_that_repeats_the_embedding_is_tied_as_its_config_says(liar, tmp_path) -> None:
    shutil.copytree(liar, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, file, {"format": "pt"})
    model = meta_causal_lm(ModelConfig(path=str(tmp_path / "model")))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tied_embeddings_stay_tied(tiny_model, tmp_path, precision) -> None:
    source = ModelConfig(path=str(tiny_model), precision=precision)
    module = moved(TokenLogps(load_causal_lm(source), precision))
    held = export(trained(source, module), tmp_path)
    assert held.largest_difference < held.tolerance
    assert "lm_head.weight" not in load_file(tmp_path / "model/model.safetensors")


@pytest.mark.parametrize("name", ["liar", "tiny_model"])
def test_a_merged_adapter_says_what_the_trainer_said(name, request, tmp_path) -> None:
    source = ModelConfig(path=str(request.getfixturevalue(name)))
    lora = LoraSettings(rank=4)
    module = TokenLogps(load_causal_lm(source))
    add_adapter(module.model, lora, seed=0)
    held = export(trained(source, moved(module), lora=lora), tmp_path)
    assert held.largest_difference < 1e-4
    assert alone(tmp_path / "model") < 1e-4
    base = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)


def test_a_reward_model_gives_the_trainers_rewards(tiny_model, tmp_path) -> None:
    source = ModelConfig(path=str(tiny_model))
    given = trained(source, moved(TokenRewards(load_scalar_head(source))))
    assert len({reward for row in given.probe for reward in row[REWARDS]}) == 4
    assert export(given, tmp_path).largest_difference < 1e-5
    row = json.loads((tmp_path / "model" / PROBE_FILE).read_text())
    row[0][REWARDS][0] += 2.0
    (tmp_path / "model" / PROBE_FILE).write_text(json.dumps(row))
    with pytest.raises(ModelError, match="differs from the trained one: a reward by"):
        check_weights(source, scalar_head=True, folder=tmp_path / "model")


def test_a_folder_that_holds_other_weights_is_no_export(tiny_model, tmp_path) -> None:
    source = ModelConfig(path=str(tiny_model))
    given = trained(source, moved(TokenLogps(load_causal_lm(source))))
    given.parameters["model.norm.weight"][3] += 0.5
    with pytest.raises(ModelError, match=r"a token's log-prob by [\d.]+ nats"):
        export(given, tmp_path)


def test_a_log_prob_that_is_not_finite_is_no_agreement(tiny_model, tmp_path) -> None:
    source = ModelConfig(path=str(tiny_model))
    given = trained(source, TokenLogps(load_causal_lm(source)))
    given.probe[0][LOGPS][0][0] = float("nan")
    with pytest.raises(ModelError, match="by inf nats"):
        export(given, tmp_path)


def test_template_and_padding_token_of_the_configuration_are_read_back(
    tiny_model, tmp_path
) -> None:
    template = tmp_path / "own template#1.jinja"
    template.write_text("{{ messages[0].content }}{{ eos_token }}")
    source = ModelConfig(path=str(tiny_model), chat_template=str(template), pad_token="</s>")
    export(trained(source, TokenLogps(load_causal_lm(source))), tmp_path / "a b%20#c")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a b%20#c/model")
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("</s>", template.read_text())
