"""Settings for vLLM: its engine's arguments, its environment, and the sampling of a prompt.

From the model and the `sampling` section the module derives the arguments and environment
variables of an engine, and loads it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.core.errors import ConfigError, ModelError, said_by
from raydpo.models.context import engine_overrides, model_context
from raydpo.models.loading import (
    CAUSAL_LM,
    check_weights,
    local_folder,
    model_config_values,
    unties_embeddings,
)

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams

#: Mixed into vLLM's worker class: brings a live engine to other weights.
_WORKER_EXTENSION: Final = "raydpo.sampling.reload.ReloadingWorker"


def sampling_parameters(sampling: SamplingConfig, seed: int) -> list[SamplingParams]:
    """Parameters of vLLM for one prompt, one for each temperature, in the candidates' order.

    Candidate k is drawn with `seed` + k, whatever the temperatures. Greedy sampling is asked for one
    completion only.

    Raises:
        ConfigError: vLLM refuses them.
    """
    if sampling.temperature == 0 and not sampling.temperatures:
        return [_parameters(sampling, seed, 1, 0.0)]
    temperatures = sampling.temperatures or (sampling.temperature,)
    count = sampling.candidates // len(temperatures)
    return [
        _parameters(sampling, seed + number * count, count, temperature)
        for number, temperature in enumerate(temperatures)
    ]


def _parameters(
    sampling: SamplingConfig, seed: int, count: int, temperature: float
) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            **sampling.extra,
            n=count,
            seed=seed,
            temperature=temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            min_tokens=sampling.min_completion_tokens,
            max_tokens=sampling.max_completion_tokens,
            stop=list(sampling.stop),
            logprobs=0,  # the sampled token's own log-prob, and no other's
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except Exception as error:
        raise ConfigError(
            f"vLLM refuses the sampling settings: {said_by(error)}",
            "they are what vLLM's SamplingParams takes",
            "change the value in `sampling` that the message names",
        ) from error


def scoring_parameters() -> SamplingParams:
    """Parameters of vLLM for the log-probs of a prompt's own tokens; one token is sampled too."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,  # the prompt's own tokens, and no other's
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def max_sequence_tokens(
    model: ModelConfig, sampling: SamplingConfig, max_prompt_tokens: int
) -> int:
    """Longest sequence, prompt and completion, that an engine makes room for.

    Raises:
        ConfigError: the model has fewer positions, or no prompt would fit.
    """
    given = sampling.engines.max_sequence_tokens
    tokens = given or max_prompt_tokens + sampling.max_completion_tokens
    context = model_context(model_config_values(model))
    if context is not None and tokens > context.tokens:
        raise ConfigError(
            f"prompts of {max_prompt_tokens} and completions of "
            f"{sampling.max_completion_tokens} tokens need sequences of {tokens}",
            f"the model {model.path!r} takes {context.tokens} tokens ({context.because})",
            "lower prompts.max_prompt_tokens, sampling.max_completion_tokens or "
            "sampling.engines.max_sequence_tokens",
        )
    if tokens <= sampling.max_completion_tokens:
        raise ConfigError(
            f"sampling.engines.max_sequence_tokens {tokens}",
            f"it leaves room for a prompt before {sampling.max_completion_tokens} completion tokens "
            "(sampling.max_completion_tokens)",
            "raise the first, lower the second, or leave the first out",
        )
    return tokens


def engine_dtype(model: ModelConfig, sampling: SamplingConfig) -> str:
    """The dtype of the engine's weights and activations."""
    dtype = sampling.engines.dtype
    return model.precision if dtype == "auto" else dtype


def engine_arguments(
    model: ModelConfig, sampling: SamplingConfig, max_prompt_tokens: int, cuda: bool
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs`, the model's folder left out.

    Raises:
        ConfigError: see `max_sequence_tokens`; on CPU, `max_batch_tokens` below it.
    """
    engines = sampling.engines
    eager = engines.enforce_eager
    longest = max_sequence_tokens(model, sampling, max_prompt_tokens)
    arguments: dict[str, Any] = {
        "dtype": engine_dtype(model, sampling),
        "max_model_len": longest,
        "hf_overrides": engine_overrides(longest, model_config_values(model)),
        "max_num_seqs": engines.max_batch_sequences,
        "max_num_batched_tokens": engines.max_batch_tokens,
        "enforce_eager": not cuda if eager is None else eager,
        "load_format": "safetensors",  # `auto` takes consolidated.safetensors where there is one
        "trust_remote_code": False,
        "generation_config": "vllm",  # the model's own would change temperature or top_p in silence
        "logprobs_mode": "raw_logprobs",
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "worker_extension_cls": _WORKER_EXTENSION,
        **engines.extra,
    }
    if engines.max_lora_rank:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": engines.max_lora_rank}
    if engines.tensor_parallel > 1:
        arguments["tensor_parallel_size"] = engines.tensor_parallel
        arguments["distributed_executor_backend"] = "mp"
    if cuda:
        arguments["gpu_memory_utilization"] = engines.gpu_memory_fraction
        arguments["enable_sleep_mode"] = engines.sleep
        return arguments
    _check_whole_prompts(arguments["max_model_len"], engines.max_batch_tokens)
    # On CPU a prompt with a seed cannot be prefilled in chunks (torch's CPU generator has no
    # offset), and reusing the keys of a shared prefix would make a completion depend on
    # what the engine did before it.
    return {**arguments, "enable_chunked_prefill": False, "enable_prefix_caching": False}


def _check_whole_prompts(longest: int, batch_tokens: int | None) -> None:
    if batch_tokens is not None and batch_tokens < longest:
        raise ConfigError(
            f"sampling.engines.max_batch_tokens {batch_tokens}, sequences of up to {longest} tokens",
            "on CPU a prompt is read in one step, so a step has room for the longest sequence",
            f"raise it to {longest} or more, or leave it out",
        )


def engine_environment(sampling: SamplingConfig, cuda: bool) -> dict[str, str]:
    """Environment variables that must be set before vLLM is imported."""
    engines = sampling.engines
    environment = {
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        # The scheduler runs in the actor's own process: it dies with it, and holds no GPU after.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": "127.0.0.1",  # an engine's processes share a node: nothing else may listen in
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "TORCH_LOGS": os.environ.get("TORCH_LOGS", "-all"),
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if cuda:
        return environment
    return {
        **environment,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(engines.cpu_kv_cache_gib),
        "OMP_NUM_THREADS": str(max(1, int(engines.cpus / engines.tensor_parallel))),
        "TORCH_COMPILE_DISABLE": "1" if engines.enforce_eager is not False else "0",
    }


def load_engine(model: ModelConfig, arguments: dict[str, Any]) -> LLMEngine:
    """A vLLM engine with the model's weights.

    Raises:
        ModelError: see `models.check_weights`; or vLLM cannot load it.
    """
    folder = local_folder(model)
    check_weights(model, CAUSAL_LM)  # vLLM skips weights that it has no place for
    if unties_embeddings(model):  # vLLM goes by the config, and would leave the output layer out
        overrides = {**arguments.get("hf_overrides", {}), "tie_word_embeddings": False}
        arguments = {**arguments, "hf_overrides": overrides}
    from vllm import EngineArgs, LLMEngine
    from vllm.usage.usage_lib import UsageContext

    try:
        # Without a context vLLM takes batches of 128 sequences and 2,048 tokens, whatever the
        # machine; for its offline `LLM`, what suits it (256 on CPU, 1,024 on an H100).
        return LLMEngine.from_engine_args(
            EngineArgs(model=str(folder), **arguments), usage_context=UsageContext.LLM_CLASS
        )
    except Exception as error:
        raise ModelError(
            f"model {model.path!r}: vLLM cannot load it: {said_by(error)}",
            "vLLM knows the architecture, and the weights and the cache of keys and values fit "
            "into memory (on CPU, heads need 32 or more dimensions)",
            "look at the engine's log above (VLLM_LOGGING_LEVEL=INFO says more); memory is set by "
            "sampling.engines.gpu_memory_fraction, cpu_kv_cache_gib and max_sequence_tokens",
        ) from error
