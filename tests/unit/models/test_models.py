"""Models are loaded from safetensors only, and without running code that they bring."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.loading import (
    adapter_base,
    load_causal_lm,
    load_tokenizer,
    local_folder,
    model_config_values,
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


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"model": {"type": "BPE2"}}),  # of a newer tokenizers
        ("tokenizer.json", {"version": "9.0"}),
        ("tokenizer_config.json", {"model_max_length": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(tiny_model, tmp_path, name, change) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, **change}))
    with pytest.raises(ModelError) as refused:
        load_tokenizer(ModelConfig(path=str(folder)))
    assert refused.value.value.startswith(
        f"the tokenizer of model {str(folder)!r} cannot be loaded"
    )
    assert len(str(refused.value).splitlines()) == 3


def test_a_folder_without_a_tokenizer_says_so(tiny_model, tmp_path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="the folder has no vocabulary"):
        load_tokenizer(ModelConfig(path=str(folder)))


def test_an_adapter_that_is_its_own_base_is_refused(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path)})
    )
    for question in (adapter_base, weights_fingerprint):
        with pytest.raises(ModelError, match="which is an adapter itself"):
            question(ModelConfig(path=str(tmp_path)))


def test_an_adapter_is_no_policy(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for question in (model_config_values, load_causal_lm):
        with pytest.raises(ModelError, match=r"LoRA adapter .* of 'org/base'"):
            question(ModelConfig(path=str(tmp_path)))
