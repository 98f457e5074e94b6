import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raydpo.config.job import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.core.errors import ConfigError, ModelError
from raydpo.models.loading import load_causal_lm
from raydpo.sampling.arguments import (
    engine_arguments,
    engine_dtype,
    engine_environment,
    load_engine,
    max_sequence_tokens,
    sampling_parameters,
)


def model_folder(path: Path, **values: Any) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return ModelConfig(path=str(path))


def sampling(max_completion_tokens: int = 20, **engines: Any) -> SamplingConfig:
    return SamplingConfig(
        max_completion_tokens=max_completion_tokens, engines=EnginesConfig(**engines)
    )


def test_sequences_are_as_long_as_prompt_and_completion(tmp_path: Path) -> None:
    model = model_folder(tmp_path, max_position_embeddings=30)
    assert max_sequence_tokens(model, sampling(), 10) == 30
    assert max_sequence_tokens(model, sampling(max_sequence_tokens=25), 10) == 25


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions"])
def test_sequences_longer_than_the_model_are_refused(tmp_path: Path, key: str) -> None:
    model = model_folder(tmp_path, **{key: 29})
    with pytest.raises(ConfigError, match=f"takes 29 tokens \\({key} 29\\)"):
        max_sequence_tokens(model, sampling(), 10)


def test_a_sequence_length_without_room_for_a_prompt_is_refused(tmp_path: Path) -> None:
    model = model_folder(tmp_path, max_position_embeddings=100)
    with pytest.raises(ConfigError, match="room for a prompt"):
        max_sequence_tokens(model, sampling(max_sequence_tokens=20), 10)


def test_dtype_is_the_models_precision_unless_given() -> None:
    model = ModelConfig(path="m", precision="bfloat16")
    assert engine_dtype(model, sampling()) == "bfloat16"
    assert engine_dtype(model, sampling(dtype="float32")) == "float32"


def test_cuda_engines_get_their_gpus_and_memory(tmp_path: Path) -> None:
    model = model_folder(tmp_path)
    config = sampling(tensor_parallel=4, gpu_memory_fraction=0.5)
    arguments = engine_arguments(model, config, 10, cuda=True)
    assert arguments["tensor_parallel_size"] == 4
    assert arguments["distributed_executor_backend"] == "mp"
    assert arguments["gpu_memory_utilization"] == 0.5
    assert arguments["enforce_eager"] is False
    assert "enable_chunked_prefill" not in arguments


def test_engines_sleep_where_there_is_memory_to_give_up(tmp_path: Path) -> None:
    """VLLM refuses the setting on CPU, where sleeping only pauses."""
    model, config = model_folder(tmp_path), sampling(sleep=True, gpu_share=0.6)
    assert engine_arguments(model, config, 10, cuda=True)["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in engine_arguments(model, config, 10, cuda=False)
    assert engine_arguments(model, sampling(), 10, cuda=True)["enable_sleep_mode"] is False


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ({"sleep": True}, "leave room for the others"),
        ({"sleep": True, "gpu_share": 0.5}, "no two meet on one"),
        ({"tensor_parallel": 2, "gpu_share": 0.6}, "several GPUs whole"),
        ({"max_batch_sequences": 8, "max_batch_tokens": 7}, "a token of each sequence"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    engines: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EnginesConfig(**engines)


def test_cpu_engines_run_eagerly_and_prefill_whole_prompts(tmp_path: Path) -> None:
    arguments = engine_arguments(model_folder(tmp_path), sampling(), 10, cuda=False)
    assert arguments["enforce_eager"] is True
    assert arguments["enable_chunked_prefill"] is False
    assert "tensor_parallel_size" not in arguments


def test_batches_are_vllms_own_unless_given(tmp_path: Path) -> None:
    model = model_folder(tmp_path)
    for cuda in (True, False):
        plain = engine_arguments(model, sampling(), 10, cuda)
        assert (plain["max_num_seqs"], plain["max_num_batched_tokens"]) == (None, None)
        config = sampling(max_batch_sequences=7, max_batch_tokens=30)
        given = engine_arguments(model, config, 10, cuda)
        assert (given["max_num_seqs"], given["max_num_batched_tokens"]) == (7, 30)


LIMITS = """
import json, sys
from vllm import EngineArgs
from vllm.usage.usage_lib import UsageContext
from raydpo.config.job import ModelConfig
from raydpo.sampling.arguments import load_engine

path, arguments = sys.argv[1], json.loads(sys.argv[2])
ours = load_engine(ModelConfig(path=path), arguments).vllm_config
offline = EngineArgs(model=path, **arguments).create_engine_config(UsageContext.LLM_CLASS)
configs = [config.scheduler_config for config in (ours, offline)]
print(json.dumps([[c.max_num_seqs, c.max_num_batched_tokens] for c in configs]))
"""


@pytest.mark.slow
def test_engines_batch_as_vllms_offline_interface_does(tiny_model: Path) -> None:
    """VLLM's bare engine takes 128 sequences and 2,048 tokens, whatever the machine."""
    arguments = engine_arguments(ModelConfig(path=str(tiny_model)), sampling(), 10, cuda=False)
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, str(tiny_model), json.dumps(arguments)],
        env={**os.environ, **engine_environment(sampling(), cuda=False)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours, offline = json.loads(done.stdout.splitlines()[-1])
    assert ours == offline == [256, 4096]


LOGPS = """
import json, sys
from vllm import TokensPrompt
from raydpo.config.job import ModelConfig
from raydpo.sampling.arguments import load_engine, scoring_parameters

path, arguments, ids = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
engine = load_engine(ModelConfig(path=path), arguments)
engine.add_request("0", TokensPrompt(prompt_token_ids=ids), scoring_parameters())
(output,) = engine.step()
print(json.dumps([of[i].logprob for of, i in zip(output.prompt_logprobs[1:], ids[1:])]))
"""


@pytest.mark.slow
def test_an_engine_has_the_output_layer_that_the_config_denies(liar: Path) -> None:
    ids = [1, 5, 80, 200, 30]
    model = load_causal_lm(ModelConfig(path=str(liar)))
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = logps.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    arguments = engine_arguments(ModelConfig(path=str(liar)), sampling(), 10, cuda=False)
    done = subprocess.run(
        [sys.executable, "-c", LOGPS, str(liar), json.dumps(arguments), json.dumps(ids)],
        env={**os.environ, **engine_environment(sampling(), cuda=False)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-3)


def test_cpu_batches_without_room_for_a_sequence_are_refused(tmp_path: Path) -> None:
    model, config = model_folder(tmp_path), sampling(max_batch_tokens=29)
    with pytest.raises(ConfigError, match="max_batch_tokens 29, sequences of up to 30"):
        engine_arguments(model, config, 10, cuda=False)
    assert engine_arguments(model, config, 10, cuda=True)["max_num_batched_tokens"] == 29


def test_ranks_of_a_split_cpu_engine_share_its_threads(tmp_path: Path) -> None:
    config = sampling(tensor_parallel=2, cpus=8)
    arguments = engine_arguments(model_folder(tmp_path), config, 10, cuda=False)
    assert arguments["tensor_parallel_size"] == 2
    assert arguments["distributed_executor_backend"] == "mp"
    assert engine_environment(config, cuda=False)["OMP_NUM_THREADS"] == "4"


def test_enforce_eager_is_taken_as_given(tmp_path: Path) -> None:
    model = model_folder(tmp_path)
    for cuda in (True, False):
        for eager in (True, False):
            config = sampling(enforce_eager=eager)
            assert engine_arguments(model, config, 10, cuda)["enforce_eager"] is eager
    assert (
        engine_environment(sampling(enforce_eager=False), cuda=False)["TORCH_COMPILE_DISABLE"]
        == "0"
    )


def test_cpu_engines_take_threads_and_memory_from_the_configuration() -> None:
    environment = engine_environment(sampling(cpus=3.5, cpu_kv_cache_gib=7), cuda=False)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert engine_environment(sampling(cpus=0.5), cuda=False)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("cuda", [True, False])
def test_engines_listen_on_loopback_only_and_die_with_their_actor(cuda: bool) -> None:
    environment = engine_environment(sampling(), cuda)
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_a_temperature_that_vllm_would_raise_in_silence_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"0 \(greedy\) or at least 0.01"):
        SamplingConfig(temperature=0.005)
    assert SamplingConfig(temperature=0).temperature == 0


def test_a_model_with_code_of_its_own_is_refused_before_vllm_sees_it(tmp_path: Path) -> None:
    model = model_folder(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(ModelError, match="auto_map"):
        load_engine(model, {})


def test_further_arguments_reach_the_engine_and_the_key(tmp_path: Path) -> None:
    model = model_folder(tmp_path, max_position_embeddings=100)
    given = sampling(extra={"block_size": 32})
    assert engine_arguments(model, given, 10, cuda=False)["block_size"] == 32
    assert engine_arguments(model, given, 10, cuda=True)["block_size"] == 32
    assert given.later_content == {"engine_extra": {"block_size": 32}}
    assert SamplingConfig().later_content == {}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"seed": 3}, "`seed`: raydpo gives each prompt its seed"),
        ({"n": 2}, "`n`: set `sampling.candidates`"),
        ({"logprobs": 5}, "`logprobs`: raydpo asks for the log-probs"),
        ({"ignore_eos": True}, "`ignore_eos`: a completion ends with its end token"),
        ({"_eos_token_id": 3}, "`_eos_token_id`: it is internal"),
    ],
)
def test_sampling_arguments_of_raydpo_itself_are_refused(
    extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplingConfig.model_validate({"extra": extra})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"dtype": "float16"}, "`dtype`: set `sampling.engines.dtype`"),
        ({"enable_prefix_caching": True}, "would depend on what the engine did before"),
        ({"data_parallel_size": 2}, "`data_parallel_size`: Ray places the engines"),
        ({"logits_processors": ["a:B"]}, "would not be in the key of the samples"),
        ({"hf_token": "x"}, "set HF_TOKEN in the environment"),
        ({"quantization": "fp8"}, "something else than the policy's weights"),
    ],
)
def test_engine_arguments_that_break_reproducibility_are_refused(
    extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EnginesConfig.model_validate({"extra": extra})


def test_each_temperature_has_its_share_of_the_candidates_and_their_seeds() -> None:
    several = SamplingConfig(candidates=6, temperatures=(0.5, 1.0, 1.5))
    assert several.temperature_of_each == (0.5, 0.5, 1.0, 1.0, 1.5, 1.5)
    assert SamplingConfig(candidates=2, temperature=0.7).temperature_of_each == (0.7, 0.7)
    for values, message in (
        ({"candidates": 4, "temperatures": [0.5, 1.0, 1.5]}, "a multiple of their number"),
        ({"temperature": 0.7, "temperatures": [0.5, 1.0]}, "give one"),
        ({"function": "a:b", "temperatures": [0.5, 1.0]}, "for vLLM"),
        ({"function": "a:b", "extra": {"bad_words": ["x"]}}, "`extra` is for vLLM"),
    ):
        with pytest.raises(ValidationError, match=message):
            SamplingConfig.model_validate(values)


@pytest.mark.slow
def test_settings_reach_vllm_and_what_it_does_not_take_is_refused() -> None:
    from raydpo.check.vllm_arguments import check_extra

    settings = SamplingConfig(
        candidates=6,
        temperatures=(0.5, 1.5),
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        extra={"bad_words": ["the"]},
    )
    first, second = sampling_parameters(settings, 100)
    assert (first.n, first.seed, first.temperature) == (3, 100, 0.5)
    assert (second.n, second.seed, second.temperature) == (3, 103, 1.5)
    assert (first.min_p, first.presence_penalty, first.frequency_penalty) == (0.1, 0.2, 0.3)
    assert (first.repetition_penalty, first.bad_words) == (1.1, ["the"])
    check_extra(settings)
    for values, message in (
        ({"extra": {"no_such_setting": 1}}, "no_such_setting"),
        ({"extra": {"bad_words": 7}}, "bad_words|int"),
        ({"engines": {"extra": {"no_such_argument": 1}}}, "EngineArgs have no 'no_such_argument'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_extra(SamplingConfig.model_validate(values))
