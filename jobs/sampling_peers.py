"""The peers of the engine pool in `bench_sampling.py`, each in a separate process.

For a model and prompts as token ids, a peer returns how many tokens it made in how many seconds.
`NoOpEngine` is a stand-in that makes no tokens: it costs nothing, which leaves only the pipeline
around an engine.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any, cast

import ray

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.models.loading import load_causal_lm, local_folder, weights_fingerprint
from raydpo.sampling.arguments import sampling_parameters
from raydpo.sampling.engine import Answers, Completion, Engine, Request
from raydpo.sampling.weights import Weights

#: Prompts of one batch of `transformers.generate`.
GENERATE_BATCH = 64


class BareLLM:
    """vLLM's own offline interface, with the pool's arguments and environment."""

    def __init__(self, model: ModelConfig, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        own = {k: v for k, v in arguments.items() if k != "worker_extension_cls"}
        self._llm = LLM(model=str(local_folder(model)), **own)

    def ready(self) -> None:
        """Answers when the model is loaded."""

    def generate(self, requests: list[Request], sampling: SamplingConfig) -> tuple[int, float]:
        """Complete all prompts in one call; tokens and seconds."""
        started = time.perf_counter()
        prompts: Any = [{"prompt_token_ids": request.prompt_ids} for request in requests]
        parameters = [sampling_parameters(sampling, request.seed)[0] for request in requests]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        tokens = sum(len(item.token_ids) for output in outputs for item in output.outputs)
        return tokens, time.perf_counter() - started


class Transformers:
    """`transformers.generate` on batches of prompts padded on the left."""

    def __init__(self, model: ModelConfig) -> None:
        import torch

        self._model: Any = load_causal_lm(model)
        if torch.cuda.is_available():
            self._model = self._model.to("cuda")

    def ready(self) -> None:
        """Answers when the model is loaded."""

    def generate(self, requests: list[Request], sampling: SamplingConfig) -> tuple[int, float]:
        """Complete the prompts batch by batch; tokens and seconds."""
        started = time.perf_counter()
        copies = [r.prompt_ids for r in requests for _ in range(sampling.candidates)]
        copies.sort(key=len)
        batches = [copies[i : i + GENERATE_BATCH] for i in range(0, len(copies), GENERATE_BATCH)]
        tokens = sum(self._batch(batch, sampling) for batch in batches)
        return tokens, time.perf_counter() - started

    def _batch(self, prompts: list[list[int]], sampling: SamplingConfig) -> int:
        import torch

        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        output = self._model.generate(
            ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            max_new_tokens=sampling.max_completion_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            pad_token_id=0,
        )[:, longest:]
        eos = self._model.generation_config.eos_token_id
        ended = (output == eos).cumsum(-1) - (output == eos).long() == 0  # up to the EOS, with it
        return int(ended.sum())


class MemoryWatch:
    """Samples a process's resident memory and Ray's object store, from a process of its own."""

    def __init__(self, process_id: int, every_seconds: float = 0.5) -> None:
        self._process_id = process_id
        self._every_seconds = every_seconds
        self._end = threading.Event()

    def watch(self) -> dict[str, Any]:
        """Sample until `stop`: peaks, and medians of the second and the last quarter, in MiB."""
        values: dict[str, list[float]] = {"driver": [], "object_store": []}
        ended = False
        while not ended:
            ended = self._end.wait(self._every_seconds)
            values["driver"].append(_resident_mib(self._process_id))
            values["object_store"].append(_object_store_mib())
        found: dict[str, Any] = {}
        for name, series in values.items():
            quarter = len(series) // 4
            second = series[quarter : 2 * quarter] or series
            last = series[-quarter:] if quarter else series
            found[f"{name}_second_quarter_mib"] = round(statistics.median(second), 1)
            found[f"{name}_last_quarter_mib"] = round(statistics.median(last), 1)
            found[f"{name}_peak_mib"] = round(max(series), 1)
        return found

    def stop(self) -> None:
        """End `watch`, which may run in another thread of the actor."""
        self._end.set()


def _resident_mib(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _object_store_mib() -> float:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = cast(Any, ray).get_runtime_context().gcs_address
    reply: Any = get_memory_info_reply(get_state_from_address(address))
    return reply.store_stats.object_store_bytes_used / 2**20


class NoOpEngine(Engine):
    """Answers at once, with the same two tokens for every prompt; no model is loaded."""

    def __init__(self, model: ModelConfig, arguments: dict[str, Any]) -> None:
        self._fingerprint = weights_fingerprint(model)

    def process_id(self) -> int:
        """The actor's process."""
        return os.getpid()

    def ready(self) -> str:
        """The fingerprint of weights that were not loaded."""
        return self._fingerprint

    def hold(self, weights: Weights) -> float:
        """Nothing to load."""
        return 0.0

    def generate(
        self, requests: list[Request], sampling: SamplingConfig, weights: Weights
    ) -> Answers:
        """K completions of two tokens for each prompt."""
        completion = Completion([5, 6], [-1.0, -2.0], "length", "ab")
        answers: Any = [[completion] * sampling.candidates for _ in requests]
        return Answers(weights.fingerprint, answers)
