"""One answer to how long a sequence a model takes, however its positions are scaled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.core.errors import ConfigError
from raydpo.models.context import check_context, engine_overrides, model_context
from raydpo.sampling.arguments import engine_arguments, max_sequence_tokens


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, **values}


FACTOR_4 = {"factor": 4.0}
FROM_64 = {"original_max_position_embeddings": 64}

CASES: dict[str, tuple[dict[str, Any], int | None]] = {
    "nothing said": ({}, None),
    "plain": ({"max_position_embeddings": 256}, 256),
    "learned": ({"n_positions": 256}, 256),
    "inside": ({"text_config": {"max_position_embeddings": 256}}, 256),
    "yarn, not stretched yet": (
        {"max_position_embeddings": 64, "rope_parameters": rope("yarn", **FACTOR_4, **FROM_64)},
        256,
    ),
    "yarn, stretched already": (
        {"max_position_embeddings": 256, "rope_scaling": {"type": "yarn", **FACTOR_4, **FROM_64}},
        256,
    ),
    "yarn without the original": (
        {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", **FACTOR_4}},
        256,
    ),
    "linear": ({"max_position_embeddings": 64, "rope_parameters": rope("linear", **FACTOR_4)}, 256),
    "linear of Gemma 3": (
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 256,
            "rope_parameters": {
                "full_attention": rope("linear", **FACTOR_4),
                "sliding_attention": rope("default"),
            },
        },
        256,
    ),
    "llama3": (
        {"max_position_embeddings": 256, "rope_parameters": rope("llama3", **FACTOR_4, **FROM_64)},
        256,
    ),
    "dynamic": (
        {"max_position_embeddings": 64, "rope_parameters": rope("dynamic", **FACTOR_4)},
        64,
    ),
    "longrope of Phi 3": (
        {
            "max_position_embeddings": 256,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            **FROM_64,
        },
        64,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_data_training_and_engines_are_held_to_the_same_length(name: str, tmp_path: Path) -> None:
    values, tokens = CASES[name]
    context = model_context(values)
    assert (context and context.tokens) == tokens
    longest = tokens or 10**6
    check_context("a + b", longest, values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    model, sampling = ModelConfig(path=str(tmp_path)), SamplingConfig(max_completion_tokens=8)
    assert max_sequence_tokens(model, sampling, longest - 8) == longest
    if tokens is None:
        return
    with pytest.raises(ConfigError, match=r"a \+ b = \d+ tokens"):
        check_context("a + b", tokens + 1, values)
    with pytest.raises(ConfigError, match=f"takes {tokens} tokens"):
        max_sequence_tokens(model, sampling, tokens - 7)


@pytest.mark.parametrize("name", ["dynamic", "longrope of Phi 3"])
def test_a_refused_length_names_the_rope_that_depends_on_the_batch(name: str) -> None:
    with pytest.raises(ConfigError, match=r"rope type `.+` turns all sequences of a batch"):
        check_context("a + b", 65, CASES[name][0])


def test_vllm_is_told_of_positions_that_yarn_stretches(tmp_path: Path) -> None:
    values, _ = CASES["yarn, not stretched yet"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    model, sampling = ModelConfig(path=str(tmp_path)), SamplingConfig(max_completion_tokens=8)
    overrides = {
        tokens: engine_arguments(model, sampling, tokens - 8, cuda=True)["hf_overrides"]
        for tokens in (64, 200)
    }
    assert overrides == {64: {}, 200: {"max_position_embeddings": 200}}
    inside = {"text_config": values}
    assert engine_overrides(200, inside) == {"text_config": {"max_position_embeddings": 200}}
    assert engine_overrides(200, CASES["linear"][0]) == {}  # vLLM multiplies by the factor itself
