import json
import os
from pathlib import Path

import pytest

from raydpo.config.job import EnginesConfig, ModelConfig
from raydpo.core.errors import EngineError, ModelError
from raydpo.models.loading import adapter_base, load_causal_lm, weights_fingerprint
from raydpo.sampling.probe import check_drift, drift_tolerance, largest_difference
from raydpo.sampling.weights import Weights, architecture, weights_of
from tests.conftest import make_tiny_model


def adapter(folder: Path, base: str | None) -> ModelConfig:
    folder.mkdir()
    values = {"base_model_name_or_path": base, "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return ModelConfig(path=str(folder))


def test_a_folder_that_changes_is_another_version_to_the_same_process(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    model = ModelConfig(path=str(tmp_path))
    weights.write_bytes(b"old")
    before = weights_of(model)
    weights.write_bytes(b"new")
    os.utime(weights, ns=(1, 1))
    assert weights_of(model).fingerprint != before.fingerprint
    weights.write_bytes(b"old")
    assert weights_of(model) == before


def test_an_adapters_version_is_its_own_and_its_bases(tmp_path: Path, tiny_model: Path) -> None:
    one = adapter(tmp_path / "one", str(tiny_model))
    base = adapter_base(one)
    assert base is not None
    assert base.path == str(tiny_model)
    assert adapter_base(base) is None
    other = make_tiny_model(tmp_path / "other", seed=1)
    two = adapter(tmp_path / "two", str(other))
    found = {weights_fingerprint(model) for model in (base, one, two)}
    assert len(found) == 3


def test_an_adapter_without_a_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        adapter_base(adapter(tmp_path / "one", None))


def test_models_share_an_engine_where_only_their_weights_differ(
    tmp_path: Path, tiny_model: Path
) -> None:
    expected = architecture(ModelConfig(path=str(tiny_model)))
    other = ModelConfig(path=str(make_tiny_model(tmp_path / "other", seed=1)))
    assert architecture(other) == expected
    assert architecture(adapter(tmp_path / "adapter", other.path)) == expected
    deeper = make_tiny_model(tmp_path / "deeper", seed=0, num_hidden_layers=3)
    assert architecture(ModelConfig(path=str(deeper))) != expected


def test_engines_are_told_of_an_output_layer_that_the_config_denies(
    tmp_path: Path, liar: Path
) -> None:
    model = ModelConfig(path=str(liar))
    assert architecture(model)["tie_word_embeddings"] is False
    loaded = load_causal_lm(model)
    loaded.save_pretrained(tmp_path / "exported")
    assert architecture(ModelConfig(path=str(tmp_path / "exported"))) == architecture(model)


def test_a_drift_is_the_largest_difference_and_never_hides_a_nan() -> None:
    assert largest_difference([[-1.0, -2.0], [-3.0]], [[-1.0, -2.5], [-3.1]]) == 0.5
    assert largest_difference([[float("nan")]], [[-1.0]]) == float("inf")


def test_a_drift_above_the_tolerance_is_refused() -> None:
    weights = Weights(ModelConfig(path="m"), "f" * 64)
    check_drift(0.9e-3, EnginesConfig(), "float32", weights)
    with pytest.raises(EngineError, match=r"within 0\.001 nats in float32"):
        check_drift(1.1e-3, EnginesConfig(), "float32", weights)
    check_drift(1.1e-3, EnginesConfig(probe_tolerance=0.01), "float32", weights)
    assert drift_tolerance(EnginesConfig(), "bfloat16") > 1e-3
