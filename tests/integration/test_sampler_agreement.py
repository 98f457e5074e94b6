"""vLLM's log-probs of its samples are the model's own, or the difference is refused with its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.core.errors import EngineError
from raydpo.reference.agreement import Agreement, check_agreement, sampler_tolerance
from raydpo.sampling.arguments import engine_environment
from tests.conftest import ROOT, make_tiny_model

pytestmark = pytest.mark.slow

#: Temperature, a nucleus, penalties and a least length make another distribution to draw from.
CUT = SamplingConfig(
    candidates=3,
    temperature=1.3,
    top_p=0.9,
    min_p=0.001,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    repetition_penalty=1.2,
    min_completion_tokens=8,
    max_completion_tokens=40,
    extra={"bad_words": ["the"]},
)
SAMPLE_AND_SCORE = """
import dataclasses, json, os, sys
from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.reference.agreement import compare_samples
from raydpo.reference.stage import Scorer
from raydpo.sampling.arguments import engine_arguments
from raydpo.sampling.engine import Engine, Request
from raydpo.sampling.weights import weights_of

model, sampling = ModelConfig(path=sys.argv[1]), SamplingConfig.model_validate_json(sys.argv[2])
engine = Engine(model, engine_arguments(model, sampling, 16, cuda=False))
requests = [Request(str(n), [1, *range(40 + n, 50 + n)], n) for n in range(4)]
answers = engine.generate(requests, sampling, weights_of(model)).answers
samples = [
    {"prompt_id": request.prompt_id, "completion_ids": c.token_ids, "sampler_token_logps": c.token_logps}
    for request, completions in zip(requests, answers) for c in completions
]
groups = [
    {"group_id": r.prompt_id, "prompt_id": r.prompt_id, "prompt_ids": r.prompt_ids,
     "completions": [c.token_ids for c in completions]}
    for r, completions in zip(requests, answers)
]
found = compare_samples(samples, groups, Scorer(model, 4096)(groups).rows)
print(json.dumps(dataclasses.asdict(found)), flush=True)
os._exit(0)
"""


def sampled_and_scored(folder: Path, **values: Any) -> Agreement:
    """How far vLLM and the trainer's forward pass are apart on a model of this configuration."""
    make_tiny_model(folder, seed=0, **values)
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE_AND_SCORE, str(folder), CUT.model_dump_json()],
        env={**os.environ, **engine_environment(CUT, cuda=False), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Agreement(**json.loads(done.stdout.splitlines()[-1]))


def test_what_is_cut_from_sampling_leaves_the_models_own_log_probs(tmp_path: Path) -> None:
    """And beyond `max_position_embeddings`, which YaRN stretches."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    yarn["original_max_position_embeddings"] = 16
    found = sampled_and_scored(tmp_path, rope_parameters=yarn, max_position_embeddings=16)
    assert found.tokens > 16 * 12
    assert found.largest_nats < 1e-3


def test_an_engine_that_reads_a_config_otherwise_is_refused(tmp_path: Path) -> None:
    """VLLM turns by `max_trained_positions`, which transformers does not know: 1.6 nats a token."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "max_trained_positions": 16}
    found = sampled_and_scored(tmp_path, rope_parameters=rope)
    tolerance = sampler_tolerance(ModelConfig(path=str(tmp_path)), EnginesConfig())
    with pytest.raises(EngineError, match=r"mean difference \d+\.\d+ nats a token"):
        check_agreement(found, tolerance, "the model")


SAMPLE = """
import json, os, sys
from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.sampling.arguments import engine_arguments
from raydpo.sampling.engine import Engine, Request
from raydpo.sampling.weights import weights_of

model, values = ModelConfig(path=sys.argv[1]), json.loads(sys.argv[2])
settings = [SamplingConfig.model_validate(value) for value in values]
engine = Engine(model, engine_arguments(model, settings[0], 16, cuda=False))
requests = [Request(str(n), [1, *range(40 + n, 50 + n)], 100 * n) for n in range(3)]
given = [engine.generate(requests, one, weights_of(model)).answers for one in settings]
print(json.dumps([[[c.token_ids for c in k] for k in one] for one in given]), flush=True)
os._exit(0)
"""


def test_each_temperature_draws_its_share_with_the_seeds_of_its_candidates(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=0)
    plain = {"candidates": 4, "max_completion_tokens": 12, "engines": {"extra": {"block_size": 32}}}
    values = [{**plain, "temperature": 0.7}, plain]
    values += [{**plain, "temperatures": list(both)} for both in ((0.7, 1.0), (1.0, 1.0))]
    environment = engine_environment(SamplingConfig(), cuda=False)
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, str(tmp_path), json.dumps(values)],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cold, warm, mixed, same = json.loads(done.stdout.splitlines()[-1])
    assert same == warm
    assert cold != warm
    for number, prompt in enumerate(mixed):
        assert prompt == [*cold[number][:2], *warm[number][2:]]
