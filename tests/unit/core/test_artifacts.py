"""Every reader compares the files of a finished stage with its manifest."""

import json
import shutil
from pathlib import Path

import pytest

from raydpo.config.job import ModelConfig
from raydpo.core.errors import DataError, ManifestError
from raydpo.core.place import Place
from raydpo.core.run import Stage, commit_files, open_stage
from raydpo.core.storage import folder_of, sha256
from raydpo.models.loading import load_tokenizer, local_folder, weights_fingerprint
from raydpo.training.metrics_log import read_metrics
from tests.conftest import make_tiny_model


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The folder of a finished training."""
    folder = tmp_path / "policy"
    stage = Stage(Place(folder_of(str(folder)), "test"), "train", None, {}, {})
    assert open_stage(stage) is None
    make_tiny_model(folder / "model", seed=0)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.693}\n')
    commit_files(stage, "weights")
    return folder


def flip(path: Path) -> tuple[str, str]:
    before = path.read_bytes()
    after = before[:-3] + bytes([before[-3] ^ 1]) + before[-2:]
    path.write_bytes(after)
    return sha256(before), sha256(after)


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_byte_of_a_policy_is_refused_by_every_reader(
    policy: Path, name: str, scheme: str
) -> None:
    model = ModelConfig(path=f"{scheme}{policy / 'model'}")
    weights_fingerprint(model)
    expected, found = flip(policy / "model" / name)
    for read in (local_folder, weights_fingerprint, load_tokenizer):
        with pytest.raises(DataError) as refused:
            read(model)
        assert f"model/{name} was changed: found {found}" in refused.value.value
        assert expected in refused.value.rule


def test_a_whole_policy_is_hashed_once_by_a_process(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(path=str(policy / "model"))
    local_folder(model)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert local_folder(model) == policy / "model"


def test_a_copy_elsewhere_is_a_model_of_its_own(policy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine" / "model"
    shutil.copytree(policy / "model", copy)
    flip(copy / "model.safetensors")
    assert local_folder(ModelConfig(path=str(copy))) == copy


@pytest.mark.parametrize("content", [b"{", b"[]", json.dumps({"files": ["a"]}).encode()])
def test_a_manifest_of_another_program_beside_a_model_is_ignored(
    tmp_path: Path, content: bytes
) -> None:
    folder = make_tiny_model(tmp_path / "models" / "one", seed=0)
    (tmp_path / "models" / "manifest.json").write_bytes(content)
    assert local_folder(ModelConfig(path=str(folder))) == folder


def test_a_damaged_manifest_of_a_policy_is_refused(policy: Path) -> None:
    content = (policy / "manifest.json").read_bytes()
    for damaged in (content.replace(b'"weights"', b'"weightz"'), content[:-9]):
        (policy / "manifest.json").write_bytes(damaged)
        with pytest.raises(ManifestError, match="damaged"):
            local_folder(ModelConfig(path=str(policy / "model")))


def test_flipped_metrics_are_refused(policy: Path) -> None:
    folder = folder_of(str(policy))
    assert read_metrics(folder) == [{"step": 1, "loss": 0.693}]
    (policy / "metrics.jsonl").write_text('{"step": 1, "loss": 0.692}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl was changed"):
        read_metrics(folder)


def test_garbage_in_the_metrics_of_a_training_in_progress_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\xff')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        read_metrics(folder_of(str(tmp_path)))
