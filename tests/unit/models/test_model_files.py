"""raydpo reads a model folder without running code or loading weights, and names what is wrong."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.models.files import (
    read_headers,
    read_mapping,
    read_tensors,
    refuse_unusable_files,
    weight_files,
)
from raydpo.models.loading import load_causal_lm, load_tokenizer, weights_fingerprint


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of a sound model that a test may break."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def shards(folder: Path) -> dict[str, str]:
    """Split model.safetensors into two shards with an index; the index's weight_map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    value = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


def test_headers_say_names_dtypes_and_shapes(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    headers = read_tensors(folder)
    assert {n: h.shape for n, h in headers.items()} == {n: w.shape for n, w in weights.items()}
    assert {h.dtype for h in headers.values()} == {"F32"}
    shards(folder)
    assert {n: h.shape for n, h in read_tensors(folder).items()} == {
        n: h.shape for n, h in headers.items()
    }


@pytest.mark.parametrize("name", ["model_before_merge.safetensors", "optimizer.safetensors"])
def test_a_file_that_vllm_would_load_and_transformers_would_not_is_refused(
    folder: Path, name: str
) -> None:
    shutil.copy(folder / "model.safetensors", folder / name)
    with pytest.raises(ModelError, match=f"{name} beside model.safetensors"):
        weight_files(folder)


def test_shards_of_another_save_are_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shards(folder)
    (folder / "model.safetensors").write_bytes(whole)  # transformers would take this one
    with pytest.raises(ModelError, match=r"model-00001-of-00002\.safetensors"):
        weight_files(folder)


def test_what_an_index_leaves_out_is_loaded_by_nobody(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    shards(folder)
    assert [file.name for file in weight_files(folder)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_shard_of_the_index_that_is_not_there_is_named(folder: Path) -> None:
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model-00002-of-00002\.safetensors"):
        read_tensors(folder)


def test_a_weight_in_two_shards_is_named(folder: Path) -> None:
    weight_map = shards(folder)
    name, file = next(iter(weight_map.items()))
    other = next(f for f in weight_map.values() if f != file)
    weights = load_file(folder / other)
    save_file({**weights, name: torch.zeros(2)}, folder / other, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} stands in"):
        read_tensors(folder)


@pytest.mark.parametrize(
    "weight_map", [None, [], {}, {"a": 1}, {"a": "../other.safetensors"}, {"a": []}]
)
def test_an_index_that_leads_nowhere_is_refused(folder: Path, weight_map: object) -> None:
    write_index(folder, weight_map)
    with pytest.raises(ModelError, match="weight_map"):
        read_tensors(folder)


def test_other_formats_alone_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"only weights\.safetensors"):
        read_tensors(folder)
    (folder / "weights.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors file"):
        read_tensors(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}x", b"\x04" + b"\0" * 7 + b"null"]
)
def test_garbage_in_a_safetensors_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        read_tensors(folder)


def test_a_file_that_is_cut_short_is_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        read_headers(folder / "model.safetensors")


def test_a_pointer_of_git_lfs_says_what_to_do(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read_tensors(folder)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantized_weights_are_refused(folder: Path, key: str) -> None:
    config = read_mapping(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, key: {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match=rf"{key}: the weights are quantized \(awq\)"):
        read_tensors(folder)


def test_an_adapter_is_no_whole_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ModelError, match=r"LoRA adapter .* of 'org/base'"):
        read_tensors(folder)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors.index.json",
        "adapter_config.json",
    ],
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_garbage_in_a_json_file_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        refuse_unusable_files(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**30},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"num_local_experts": 10**9},
        {"num_labels": 10**9},
        {"model_type": "gpt2", "n_layer": 10**9},
    ],
)
def test_a_model_of_a_billion_layers_is_refused_before_one_is_built(
    folder: Path, changes: dict[str, object]
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    model = ModelConfig(path=str(folder))
    started = time.monotonic()
    for use in (
        refuse_unusable_files,
        lambda _: load_tokenizer(model),
        lambda _: load_causal_lm(model),
    ):
        with pytest.raises(ModelError, match=r"(?s)asks for \S+ 10+\n.*tensors, the longest of"):
            use(folder)
    assert time.monotonic() - started < 30


def test_many_labels_or_experts_that_the_weights_have_are_no_reason(folder: Path) -> None:
    save_file({"score.weight": torch.zeros(5000, 1)}, folder / "model.safetensors")
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for count, fits in ((5000, True), (5001, False)):
        file.write_text(json.dumps({**values, "num_labels": count}))
        if fits:
            refuse_unusable_files(folder)
        else:
            with pytest.raises(ModelError, match="num_labels 5001"):
                refuse_unusable_files(folder)


def test_an_adapter_that_is_its_own_base_is_refused(folder: Path) -> None:
    adapter = {"base_model_name_or_path": str(folder), "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelError, match="which is an adapter itself"):
        weights_fingerprint(ModelConfig(path=str(folder)))


def test_an_adapter_whose_base_has_a_name_that_no_disk_takes_is_refused(folder: Path) -> None:
    adapter = {"base_model_name_or_path": "/" + "x" * 300, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelError, match=r"cannot be looked up: .*File name too long"):
        weights_fingerprint(ModelConfig(path=str(folder)))
