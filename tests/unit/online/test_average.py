"""A reference that follows the policy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.core.storage import folder_of
from raydpo.models.loading import load_causal_lm, load_tokenizer
from raydpo.online.average import write_average
from tests.conftest import make_tiny_model


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


def test_every_parameter_is_the_weighted_average(tiny_model, other, tmp_path: Path) -> None:
    policy, reference = ModelConfig(path=str(tiny_model)), ModelConfig(path=str(other))
    write_average(folder_of(str(tmp_path / "mixed")), policy, reference, 0.25)
    mixed = ModelConfig(path=str(tmp_path / "mixed"))
    ours, theirs, found = (load_causal_lm(m).state_dict() for m in (policy, reference, mixed))
    for name, value in found.items():
        torch.testing.assert_close(value, 0.25 * ours[name] + 0.75 * theirs[name])
    assert load_tokenizer(mixed).pad_token_id == load_tokenizer(policy).pad_token_id


def test_a_reference_whose_file_leaves_the_inner_prefix_out_is_averaged(
    tiny_model, other, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(other, short)
    tensors = load_file(short / "model.safetensors")
    renamed = {name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(renamed, short / "model.safetensors", {"format": "pt"})
    policy = ModelConfig(path=str(tiny_model))
    for name, reference in (("mixed", other), ("same", short)):
        target = folder_of(str(tmp_path / name))
        write_average(target, policy, ModelConfig(path=str(reference)), 0.5)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("mixed", "same")]
    assert files[0] == files[1]


def test_another_architecture_is_refused(tiny_model, tmp_path: Path) -> None:
    wide = make_tiny_model(tmp_path / "wide", seed=0, intermediate_size=96)
    models = ModelConfig(path=str(tiny_model)), ModelConfig(path=str(wide))
    with pytest.raises(ModelError, match="same architecture"):
        write_average(folder_of(str(tmp_path / "mixed")), *models, 0.5)


def test_what_the_trainer_said_of_the_policy_is_not_said_of_an_average(
    tiny_model, other, tmp_path: Path
) -> None:
    policy = shutil.copytree(tiny_model, tmp_path / "policy")
    (policy / "probe.json").write_text("[]")
    models = ModelConfig(path=str(policy)), ModelConfig(path=str(other))
    write_average(folder_of(str(tmp_path / "mixed")), *models, 0.5)
    assert not (tmp_path / "mixed/probe.json").exists()


def test_an_output_layer_of_its_own_is_not_averaged_away(tiny_model, liar, tmp_path: Path) -> None:
    models = ModelConfig(path=str(tiny_model)), ModelConfig(path=str(liar))
    with pytest.raises(ModelError, match="output layer of its own"):
        write_average(folder_of(str(tmp_path / "mixed")), *models, 0.5)
    with pytest.raises(ModelError, match="output layer of its own"):
        write_average(folder_of(str(tmp_path / "mixed")), *models[::-1], 0.5)
    write_average(folder_of(str(tmp_path / "own")), models[1], models[1], 0.5)
    assert "lm_head.weight" in load_file(tmp_path / "own/model.safetensors")
