"""One vLLM engine that serves several calls at once.

What comes in: prompts as token ids, each with its seed. What goes out: K completions a
prompt, as the token ids that were emitted, and the fingerprint of the weights that
emitted them. One thread owns the engine: it loads it, adds the requests of all callers
and steps it, so that calls which overlap are batched together. The class knows nothing
of Ray; `pool.py` makes actors of it.

An engine over several GPUs (tensor_parallel > 1) is one actor that holds them all and
lets vLLM start its ranks as processes on that node (its `mp` executor): an engine does
not reach over nodes.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from raydpo.config import ModelConfig, SamplingConfig
from raydpo.errors import ConfigError, ModelError
from raydpo.models import (
    local_folder,
    model_config_values,
    refuse_remote_code,
    weights_fingerprint,
)

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput, SamplingParams

logger = logging.getLogger("raydpo")


@dataclass(frozen=True)
class Request:
    """A prompt to complete; completion k is drawn with `seed` + k."""

    prompt_id: str
    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """One completion.

    `token_ids` are all that were emitted, with the EOS or the tokens of the stop string
    that ended it; `text` stops short of them. `token_logps` are the model's own
    log-probs of these tokens: float32, natural logarithm, before temperature, top_p,
    top_k or min_completion_tokens change anything. `finish_reason` is "stop" or "length".
    """

    token_ids: list[int]
    token_logps: list[float]
    finish_reason: str
    text: str


@dataclass(frozen=True)
class Refusal:
    """Why the engine did not take a prompt."""

    reason: str


@dataclass(frozen=True)
class Answers:
    """What an engine gave for a list of requests, in their order."""

    policy: str
    answers: list[list[Completion] | Refusal]


@dataclass
class _Job:
    """A request on its way through the stepping thread."""

    prompt_ids: list[int]
    parameters: SamplingParams
    answer: Future[list[Completion] | Refusal]


class Engine:
    """A vLLM engine and the thread that owns it. `generate` may be called by many threads."""

    def __init__(self, model: ModelConfig, arguments: dict[str, Any]) -> None:
        self._model = model
        self._arguments = arguments
        self._policy: Future[str] = Future()
        self._arrivals: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._jobs: dict[str, _Job] = {}
        self._numbers = itertools.count()
        threading.Thread(target=self._run, name="raydpo-engine", daemon=True).start()

    def process_id(self) -> int:
        """The engine's process; answers as soon as the actor has a place, before it loads."""
        return os.getpid()

    def ready(self) -> str:
        """Wait until the model is loaded; the fingerprint of its weights.

        Raises:
            ModelError: vLLM cannot load the model.
        """
        return self._policy.result()

    def generate(self, requests: list[Request], sampling: SamplingConfig) -> Answers:
        """Complete each prompt `sampling.candidates` times.

        Raises:
            ModelError: vLLM cannot load the model.
            ConfigError: vLLM refuses the sampling settings.
        """
        policy = self.ready()
        jobs = [
            _Job(request.prompt_ids, sampling_parameters(sampling, request.seed), Future())
            for request in requests
        ]
        for job in jobs:
            self._arrivals.put(job)
        return Answers(policy, [_k_completions(job.answer.result(), sampling) for job in jobs])

    def _run(self) -> None:
        try:
            policy = weights_fingerprint(self._model)
            engine = load_engine(self._model, self._arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised again in every caller
            self._policy.set_exception(error)
            return
        self._policy.set_result(policy)
        try:
            while True:
                self._admit(engine)
                for output in cast("list[RequestOutput]", engine.step()):
                    self._deliver(output)
        except BaseException:
            # A step that failed leaves the engine in a state that nobody knows. The process
            # ends: Ray starts another, and the calls that were open are made again.
            logger.exception("an engine step failed; process %d ends", os.getpid())
            os._exit(1)

    def _admit(self, engine: LLMEngine) -> None:
        """Add what has arrived; with nothing to step, wait for an arrival."""
        while True:
            try:
                job = self._arrivals.get(block=not engine.has_unfinished_requests())
            except queue.Empty:
                return
            self._add(engine, job)

    def _add(self, engine: LLMEngine, job: _Job) -> None:
        name = str(next(self._numbers))
        self._jobs[name] = job
        try:
            engine.add_request(name, {"prompt_token_ids": job.prompt_ids}, job.parameters)
        except Exception as error:  # noqa: BLE001 - vLLM's own errors have no common base
            del self._jobs[name]
            job.answer.set_result(Refusal(f"vLLM refused it: {error}"))

    def _deliver(self, output: RequestOutput) -> None:
        if output.finished:
            job = self._jobs.pop(output.request_id)
            job.answer.set_result([_completion(item) for item in output.outputs])


def sampling_parameters(sampling: SamplingConfig, seed: int) -> SamplingParams:
    """Parameters of vLLM for one prompt; greedy sampling is asked for one completion only.

    Raises:
        ConfigError: vLLM refuses them.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            n=1 if sampling.temperature == 0 else sampling.candidates,
            seed=seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_tokens=sampling.min_completion_tokens,
            max_tokens=sampling.max_completion_tokens,
            stop=list(sampling.stop),
            logprobs=0,  # the sampled token's own log-prob, and no other's
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except Exception as error:
        raise ConfigError(
            f"vLLM refuses the sampling settings: {error}",
            "they are what vLLM's SamplingParams takes",
            "change the value in `sampling` that the message names",
        ) from error


def max_sequence_tokens(
    model: ModelConfig, sampling: SamplingConfig, max_prompt_tokens: int
) -> int:
    """Longest sequence, prompt and completion, that an engine makes room for.

    Raises:
        ConfigError: the model has fewer positions, or no prompt would fit.
    """
    given = sampling.engines.max_sequence_tokens
    tokens = given or max_prompt_tokens + sampling.max_completion_tokens
    positions = _positions(model)
    if positions is not None and tokens > positions:
        raise ConfigError(
            f"prompts of {max_prompt_tokens} and completions of "
            f"{sampling.max_completion_tokens} tokens need sequences of {tokens}",
            f"the model {model.path!r} has {positions} positions",
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
        ConfigError: see `max_sequence_tokens`.
    """
    engines = sampling.engines
    eager = engines.enforce_eager
    arguments: dict[str, Any] = {
        "dtype": engine_dtype(model, sampling),
        "max_model_len": max_sequence_tokens(model, sampling, max_prompt_tokens),
        "enforce_eager": not cuda if eager is None else eager,
        "trust_remote_code": False,
        "generation_config": "vllm",  # the model's own would change temperature or top_p in silence
        "logprobs_mode": "raw_logprobs",
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if cuda:
        arguments["gpu_memory_utilization"] = engines.gpu_memory_fraction
        arguments["tensor_parallel_size"] = engines.tensor_parallel
        if engines.tensor_parallel > 1:
            arguments["distributed_executor_backend"] = "mp"
        return arguments
    # On CPU a prompt with a seed cannot be prefilled in chunks (torch's CPU generator has no
    # offset), and reusing the keys of a shared prefix would make a completion depend on
    # what the engine did before it.
    return {**arguments, "enable_chunked_prefill": False, "enable_prefix_caching": False}


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
    }
    if cuda:
        return {**environment, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    return {
        **environment,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(engines.cpu_kv_cache_gib),
        "OMP_NUM_THREADS": str(max(1, int(engines.cpus))),
        "TORCH_COMPILE_DISABLE": "1" if engines.enforce_eager is not False else "0",
    }


def load_engine(model: ModelConfig, arguments: dict[str, Any]) -> LLMEngine:
    """A vLLM engine with the model's weights.

    Raises:
        ModelError: the model brings code of its own, or vLLM cannot load it.
    """
    folder = local_folder(model)
    refuse_remote_code(folder)
    from vllm import EngineArgs, LLMEngine

    try:
        return LLMEngine.from_engine_args(EngineArgs(model=str(folder), **arguments))
    except Exception as error:
        raise ModelError(
            f"model {model.path!r}: vLLM cannot load it: {error}",
            "vLLM knows the architecture, and the weights and the cache of keys and values fit "
            "into memory (on CPU, heads need 32 or more dimensions)",
            "look at the engine's log above (VLLM_LOGGING_LEVEL=INFO says more); memory is set by "
            "sampling.engines.gpu_memory_fraction, cpu_kv_cache_gib and max_sequence_tokens",
        ) from error


def _k_completions(
    answer: list[Completion] | Refusal, sampling: SamplingConfig
) -> list[Completion] | Refusal:
    """Greedy completions of a prompt are all equal: the one that was made stands K times."""
    if isinstance(answer, Refusal) or len(answer) == sampling.candidates:
        return answer
    return answer * sampling.candidates


def _positions(model: ModelConfig) -> int | None:
    """Positions that the model knows, or None where stretched ones leave that to vLLM."""
    values = model_config_values(model)
    rope: dict[str, Any] = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None
    return values.get("max_position_embeddings", values.get("n_positions"))


def _completion(output: Any) -> Completion:
    token_ids = list(output.token_ids)
    return Completion(
        token_ids=token_ids,
        token_logps=[
            entry[token].logprob for token, entry in zip(token_ids, output.logprobs, strict=True)
        ],
        finish_reason=output.finish_reason,
        text=output.text,
    )
