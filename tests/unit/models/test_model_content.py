"""A model's fingerprints cover parsed JSON and tensors by name, not the layout of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.config.job import ModelConfig
from raydpo.core.differences import difference
from raydpo.core.fingerprints import Fingerprint
from raydpo.models.loading import load_causal_lm, tokenizer_fingerprint, weights_fingerprint
from tests.conftest import make_tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("original") / "model", seed=0)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def prints(folder: Path) -> tuple[Fingerprint, Fingerprint]:
    model = ModelConfig(path=str(folder))
    return weights_fingerprint(model), tokenizer_fingerprint(model)


def reorder(value: Any) -> Any:
    """The same JSON with the keys of all mappings the other way round."""
    if isinstance(value, dict):
        return {key: reorder(value[key]) for key in reversed(list(value))}
    return [reorder(item) for item in value] if isinstance(value, list) else value


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def told(before: Fingerprint, after: Fingerprint) -> str:
    """What a stage says that had the one as its input and would have the other."""
    found = {"format": 3, "inputs": {"it": str(before)}, "settings": {}}
    return difference({**found, "made_of": {"it": before.made_of}}, 3, {"it": after}, {})


def test_spaces_newlines_and_the_order_of_keys_change_nothing(original: Path, folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(reorder(json.loads(path.read_text())), indent=7) + "\n\n")
    assert prints(folder) == prints(original)


def test_a_model_that_is_saved_in_shards_is_the_same_model(original: Path, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(original)
    (folder / "model.safetensors").unlink()
    loaded.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    (folder / "config.json").write_bytes((original / "config.json").read_bytes())
    assert prints(folder) == prints(original)
    ours = load_causal_lm(ModelConfig(path=str(folder))).state_dict()
    theirs = load_causal_lm(ModelConfig(path=str(original))).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_order_and_the_metadata_of_a_safetensors_file_change_nothing(
    original: Path, folder: Path
) -> None:
    tensors = load_file(original / "model.safetensors")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    save_file(dict(reversed(tensors.items())), file, metadata={"format": "pt", "by": "us"})
    assert file.read_bytes() != content
    assert prints(folder) == prints(original)


def test_one_bit_of_any_tensor_is_another_model_and_its_layer_is_named(
    original: Path, folder: Path
) -> None:
    tensors = load_file(original / "model.safetensors")
    before, _ = prints(original)
    seen = {before}
    for name, tensor in tensors.items():
        flipped = tensor.clone()
        flipped.view(torch.uint8).view(-1)[-1] ^= 1
        save_file({**tensors, name: flipped}, folder / "model.safetensors", {"format": "pt"})
        after, _ = prints(folder)
        seen.add(after)
        layer = ".".join(name.split(".")[:3]) if ".layers." in name else name
        assert told(before, after) == f"input 'it' changed (weights of {layer})"
    assert len(seen) == len(tensors) + 1


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "gone", "more"])
def test_equal_bytes_under_another_name_shape_or_dtype_are_another_model(
    change: str, original: Path, folder: Path
) -> None:
    tensors = load_file(original / "model.safetensors")
    name = next(name for name in tensors if tensors[name].dim() == 2)
    tensor = tensors.pop(name)
    match change:
        case "name":
            tensors[name + "2"] = tensor
        case "shape":
            tensors[name] = tensor.reshape(-1)
        case "dtype":
            tensors[name] = tensor.view(torch.int32)
        case "more":
            tensors |= {name: tensor, "more": torch.zeros(0)}
        case _:
            """It stays away."""
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert prints(folder)[0] != prints(original)[0]


def test_a_changed_value_of_a_configuration_is_named_with_both_values(
    original: Path, folder: Path
) -> None:
    edit_json(folder / "config.json", rms_norm_eps=0.5)
    value = json.loads((original / "config.json").read_text())["rms_norm_eps"]
    weights, tokenizer = prints(original)
    after = prints(folder)
    assert after[1] == tokenizer
    expected = f"input 'it' changed (config.json: rms_norm_eps: {value} -> 0.5)"
    assert told(weights, after[0]) == expected


def test_a_token_that_is_added_is_another_tokenizer_and_its_place_is_named(
    original: Path, folder: Path
) -> None:
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    token = {**values["added_tokens"][0], "id": 9999, "content": "<new>"}
    edit_json(file, added_tokens=[*values["added_tokens"], token])
    weights, before = prints(original)
    after = prints(folder)
    assert after[0] == weights
    assert told(before, after[1]) == "input 'it' changed (tokenizer.json: added_tokens)"


@pytest.mark.parametrize("name", ["added_tokens.json", "spiece.model", "chat_template.jinja"])
def test_a_further_file_of_the_vocabulary_is_another_tokenizer(
    name: str, original: Path, folder: Path
) -> None:
    (folder / name).write_text('{"<new>": 99}')
    before, after = prints(original)[1], prints(folder)[1]
    assert before != after
    assert name in told(before, after)


def test_files_that_are_not_what_their_names_say_count_by_their_bytes(folder: Path) -> None:
    seen = {prints(folder)}
    for content in (b"", b"version https://git-lfs", b"\xff" * 40, bytes(8) + b"{}"):
        (folder / "model.safetensors").write_bytes(content)
        (folder / "tokenizer.json").write_bytes(content)
        seen.add(prints(folder))
    assert len(seen) == 5


def test_an_adapter_is_the_same_wherever_its_base_lies(original: Path, tmp_path: Path) -> None:
    found: set[Fingerprint] = set()
    for place in ("here", "there"):
        base = shutil.copytree(original, tmp_path / place)
        adapter = tmp_path / f"adapter-{place}"
        adapter.mkdir()
        save_file({"a": torch.ones(2)}, adapter / "adapter_model.safetensors")
        values = {"r": 2, "base_model_name_or_path": str(base)}
        (adapter / "adapter_config.json").write_text(json.dumps(values))
        found.add(weights_fingerprint(ModelConfig(path=str(adapter))))
    assert len(found) == 1
    edit_json(tmp_path / "there/config.json", rms_norm_eps=0.5)
    after = weights_fingerprint(ModelConfig(path=str(tmp_path / "adapter-there")))
    assert "base, config.json: rms_norm_eps" in told(found.pop(), after)
