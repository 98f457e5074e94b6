"""Arguments of vLLM that raydpo passes on, and those that it refuses to.

What is passed on counts in the key of the samples. An argument is refused if raydpo sets it itself,
or if with it the samples of a prompt would depend on more than the weights, the settings and the
seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator

_LOGPROBS: Final = "raydpo asks for the log-probs that it compares and learns from"
_BATCH: Final = "a completion would depend on what the engine did before it"
_PLACES: Final = "Ray places the engines: see `sampling.engines`"
_WEIGHTS: Final = "the engine would compute something else than the policy's weights"
_FILES: Final = "raydpo loads the policy that the stage samples from"
_PRINTED: Final = "the configuration is printed and saved: set HF_TOKEN in the environment"
_CODE: Final = "its code would not be in the key of the samples: use `sampling.function`"

#: Arguments of vLLM's `SamplingParams`, and why they are not passed on or what sets them.
_SAMPLING: Final = {
    "n": "set `sampling.candidates`",
    "seed": "raydpo gives each prompt its seed: set `seed` of the job",
    "temperature": "set `sampling.temperature`",
    "top_p": "set `sampling.top_p`",
    "top_k": "set `sampling.top_k`",
    "min_p": "set `sampling.min_p`",
    "presence_penalty": "set `sampling.presence_penalty`",
    "frequency_penalty": "set `sampling.frequency_penalty`",
    "repetition_penalty": "set `sampling.repetition_penalty`",
    "min_tokens": "set `sampling.min_completion_tokens`",
    "max_tokens": "set `sampling.max_completion_tokens`",
    "stop": "set `sampling.stop`",
    "ignore_eos": "a completion ends with its end token",
    "detokenize": "rewards read the texts of the completions",
    "output_kind": "raydpo takes each completion as a whole",
    "stream_interval": "raydpo takes each completion as a whole",
    "logprobs": _LOGPROBS,
    "flat_logprobs": _LOGPROBS,
    "logprob_token_ids": _LOGPROBS,
    "prompt_logprobs": _LOGPROBS,
    "prompt_logprob_token_ids": _LOGPROBS,
    "prompt_logprob_start": _LOGPROBS,
    "extra_args": _CODE,
}
#: The same for vLLM's `EngineArgs`.
_ENGINES: Final = {
    "dtype": "set `sampling.engines.dtype`",
    "max_model_len": "set `sampling.engines.max_sequence_tokens`",
    "max_num_seqs": "set `sampling.engines.max_batch_sequences`",
    "max_num_batched_tokens": "set `sampling.engines.max_batch_tokens`",
    "enforce_eager": "set `sampling.engines.enforce_eager`",
    "gpu_memory_utilization": "set `sampling.engines.gpu_memory_fraction`",
    "tensor_parallel_size": "set `sampling.engines.tensor_parallel`",
    "enable_sleep_mode": "set `sampling.engines.sleep`",
    "enable_lora": "set `sampling.engines.max_lora_rank`",
    "max_loras": "set `sampling.engines.max_lora_rank`",
    "max_lora_rank": "set `sampling.engines.max_lora_rank`",
    "seed": "raydpo gives each prompt its seed: set `seed` of the job",
    "logprobs_mode": _LOGPROBS,
    "max_logprobs": _LOGPROBS,
    "enable_prefix_caching": _BATCH,
    "enable_chunked_prefill": _BATCH,
    "speculative_config": "drafts would be drawn otherwise than the seed of the prompt says",
    "spec_method": "drafts would be drawn otherwise than the seed of the prompt says",
    "spec_model": "drafts would be drawn otherwise than the seed of the prompt says",
    "spec_tokens": "drafts would be drawn otherwise than the seed of the prompt says",
    "quantization": _WEIGHTS,
    "quantization_config": _WEIGHTS,
    "hf_overrides": _WEIGHTS,
    "model_class_overrides": _WEIGHTS,
    "generation_config": "the model's own would change the sampling settings in silence",
    "override_generation_config": "the settings of `sampling` are those that count",
    "logits_processors": _CODE,
    "worker_cls": _CODE,
    "worker_extension_cls": "raydpo's own brings new weights into live engines",
    "scheduler_cls": _CODE,
    "reasoning_parser_plugin": _CODE,
    "io_processor_plugin": _CODE,
    "trust_remote_code": "raydpo runs no code of a model's folder",
    "model": _FILES,
    "model_weights": _FILES,
    "tokenizer": _FILES,
    "tokenizer_mode": _FILES,
    "skip_tokenizer_init": _FILES,
    "revision": _FILES,
    "code_revision": _FILES,
    "tokenizer_revision": _FILES,
    "hf_config_path": _FILES,
    "config_format": _FILES,
    "load_format": _FILES,
    "ignore_patterns": _FILES,
    "default_mm_loras": _FILES,
    "runner": "raydpo samples completions",
    "convert": "raydpo samples completions",
    "hf_token": _PRINTED,
    "disable_log_stats": "raydpo counts tokens and completions itself",
    "use_tqdm_on_load": "the log of a run has no progress bars",
    "distributed_executor_backend": _PLACES,
    "pipeline_parallel_size": _PLACES,
    "nnodes": _PLACES,
    "node_rank": _PLACES,
    "master_addr": _PLACES,
    "master_port": _PLACES,
    "device_ids": _PLACES,
    "weight_transfer_config": "set `sampling.engines.weight_transfer`",
}
#: Beginnings of names of `EngineArgs` that place an engine.
_PLACING: Final = ("data_parallel", "prefill_context_parallel", "decode_context_parallel")


def _refused(names: Iterable[str], reasons: Mapping[str, str]) -> dict[str, str]:
    found = {name: reasons[name] for name in names if name in reasons}
    internal = {name: "it is internal to vLLM" for name in names if name.startswith("_")}
    return found | internal


def _sampling_extra(value: dict[str, Any]) -> dict[str, Any]:
    return _only_free(value, _refused(value, _SAMPLING))


def _engine_extra(value: dict[str, Any]) -> dict[str, Any]:
    places = {name: _PLACES for name in value if name.startswith(_PLACING)}
    return _only_free(value, _refused(value, _ENGINES) | places)


def _only_free(value: dict[str, Any], refused: dict[str, str]) -> dict[str, Any]:
    if refused:
        said = "; ".join(f"`{name}`: {reason}" for name, reason in sorted(refused.items()))
        raise ValueError(f"raydpo does not pass these on to vLLM: {said}")
    return value


#: Further arguments of `SamplingParams`.
SamplingExtra = Annotated[dict[str, Any], AfterValidator(_sampling_extra)]
#: Further arguments of `EngineArgs`.
EngineExtra = Annotated[dict[str, Any], AfterValidator(_engine_extra)]
