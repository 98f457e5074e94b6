"""The sampling stage: sample K candidates for each prompt.

From the prompts table and the policy it makes the candidates table, with the same rows for any
number of engines and any order of the work. Light Ray Data workers carry whole parts to the
engines, several for each, so that none runs dry.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

from raydpo.config.base import ForwardConfig
from raydpo.config.content import content_of
from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.config.sampling import SamplerFunctionConfig
from raydpo.core.errors import EngineError
from raydpo.core.metadata import metadata_count
from raydpo.core.own_functions import search_path
from raydpo.core.parts import PartJob, PartStage, PartWork, Table, Workers, to_table
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage
from raydpo.core.storage import fingerprint
from raydpo.core.tables import Row
from raydpo.models.loading import tokenizer_fingerprint
from raydpo.sampling.arguments import engine_dtype, max_sequence_tokens
from raydpo.sampling.engine import Completion, Refusal, Request
from raydpo.sampling.function import (
    check_sampler_takes,
    sampler_inputs,
    sampler_name,
    sampler_settings,
)
from raydpo.sampling.function_worker import Answer, FunctionSampler, sampler_workers
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.weights import Weights, weights_of

STAGE_NAME: Final = "sampling"
#: The count of completions whose sampler function gave no log-probs.
WITHOUT_LOGPS: Final = "without_logps"
#: Parts that an engine works on at once: the next is there before the last completion ends.
PARTS_IN_FLIGHT: Final = 2


@dataclass(frozen=True)
class _Task:
    """What a worker needs to know to sample a part.

    `longest_prompt` is in tokens. `policy` is what samples: a fingerprint of weights, or the path
    of a function that is not given the model.
    """

    sampling: SamplingConfig
    weights: Weights
    seed: int
    round_index: int
    longest_prompt: int
    policy: str


def sampling_work(
    place: Place,
    prompts: Table,
    *,
    model: ModelConfig,
    sampling: SamplingConfig,
    max_prompt_tokens: int,
    pool: Callable[[], EnginePool] | None = None,
) -> PartWork:
    """Sample K completions for each prompt.

    Args:
        place: where the candidates table goes. Its seed, its round and the prompt's id fix the
            tokens.
        prompts: the prompts table; part i becomes part i of the candidates.
        model: the policy that samples: a model's folder, or an adapter's.
        sampling: K, temperature and the like, and the engines.
        max_prompt_tokens: longest prompt, in tokens; a longer one may be refused.
        pool: gives engines that serve other stages too (`Engines.pool`), and is asked only if
            a part is missing; the weights are pushed into them. Without it engines are
            started for this stage.

    Raises:
        ConfigError, ModelError, EngineError: the engines cannot be started or take these
            weights, or died; or the sampler function cannot be called.
        DataError: the sampler function fails for every prompt, or returns the wrong number.
        QuarantineBudgetError: too many prompts were refused.
    """
    tokens = max_sequence_tokens(model, sampling, max_prompt_tokens)
    longest = tokens - sampling.max_completion_tokens
    weights = weights_of(model)
    policy = sampler_name(sampling) or str(weights.fingerprint)
    task = _Task(sampling, weights, place.seed, place.round_index, longest, policy)
    if sampling.function is not None:
        check_sampler_takes(sampling.function, model, sampling)

    def open_job(missing: int) -> AbstractContextManager[PartJob]:
        if sampling.function is not None:
            return nullcontext(_function_job(sampling.function, task, missing))
        engines = _shared(pool(), task) if pool else _pool_for(missing)
        return _job(engines, task, missing, place.label)

    def _pool_for(parts: int) -> AbstractContextManager[EnginePool]:
        return engine_pool(model, sampling, max_prompt_tokens, place.label, at_most=parts)

    return PartWork([PartStage(_stage(place, prompts, model, task), [prompts])], open_job)


#: `sampling_work`, done: the candidates.
sample_candidates = to_table(sampling_work)


@contextmanager
def _shared(pool: EnginePool, task: _Task) -> Generator[EnginePool]:
    """A pool that other stages use too, while this one does."""
    yield _fitting(pool, task)
    pool.rest()


def _fitting(pool: EnginePool, task: _Task) -> EnginePool:
    """The pool, if it can do this stage's work as engines of the stage's own would."""
    dtype = engine_dtype(task.weights.model, task.sampling)
    longest = task.longest_prompt + task.sampling.max_completion_tokens
    if pool.dtype != dtype or pool.max_sequence_tokens < longest:
        raise EngineError(
            f"engines of {pool.dtype} with room for {pool.max_sequence_tokens} tokens",
            f"this stage samples in {dtype}, sequences of up to {longest} tokens",
            "start the pool with the longest prompt of all stages, or let the stage start its own",
        )
    return pool


def _stage(place: Place, prompts: Table, model: ModelConfig, task: _Task) -> Stage:
    """The stage's identity: what the tokens depend on, and nothing about the machines."""
    by_model = task.policy == task.weights.fingerprint
    return Stage(
        place=place,
        name=STAGE_NAME,
        table="candidates",
        inputs={
            "prompts": prompts.fingerprint,
            **({"policy": task.weights.fingerprint} if by_model else {}),
            "tokenizer": tokenizer_fingerprint(model),
            **sampler_inputs(task.sampling),
        },
        settings={
            **content_of(model, without=ForwardConfig),
            **content_of(task.sampling),
            **task.sampling.later_content,
            **sampler_settings(task.sampling),
            "candidates": task.sampling.candidates,
            **({} if task.sampling.function else {"dtype": engine_dtype(model, task.sampling)}),
            "longest_prompt_tokens": task.longest_prompt,
            "seed": task.seed,
            "round": task.round_index,
        },
    )


@contextmanager
def _job(
    engines: AbstractContextManager[EnginePool], task: _Task, parts: int, what: str
) -> Generator[PartJob]:
    """The engines, and the work of the stage's workers with them; says how fast it went."""
    with engines as pool:
        pool.push(task.weights, what)
        completions_before, tokens_before = pool.made()
        started = time.monotonic()
        count = min(parts, PARTS_IN_FLIGHT * pool.count)
        # The workers only carry: they hold no CPU, so engines may hold all there are. Each process
        # keeps its bond with an engine through the stage; another stage may have other engines.
        make = functools.partial(_Sampler, pool, task)
        yield PartJob(make, _carriers(count, task.sampling), identity=uuid.uuid4().hex)
        seconds = time.monotonic() - started - pool.idle_seconds()
        completions, tokens = pool.made()
        logger.info(
            "[%s] %d completions, %d tokens in %.1f s: %.1f completions/s, %.0f tokens/s",
            what,
            completions - completions_before,
            tokens - tokens_before,
            seconds,
            (completions - completions_before) / seconds,
            (tokens - tokens_before) / seconds,
        )


def _carriers(count: int, sampling: SamplingConfig) -> Workers:
    limit = sampling.engines.answer_within_seconds
    return Workers(
        count,
        cpus=0.0,
        answer_within_seconds=limit,
        answer_setting="sampling.engines.answer_within_seconds",
    )


class _Sampler:
    """A worker's bond with an engine, until that engine is dead."""

    def __init__(self, pool: EnginePool, task: _Task) -> None:
        self._pool = pool
        self._task = task
        self._engine = pool.take()

    def __call__(self, prompts: list[Row]) -> PartResult:
        """One part: prompts -> K candidates each, neighbours, in the prompts' order."""
        task = self._task
        _, requests = _requests(prompts, task)
        self._engine, given = self._pool.generate(
            self._engine, requests, task.sampling, task.weights
        )
        _check_policy(given.policy, task.weights.fingerprint)
        result = _candidates(prompts, _by_prompt(requests, given.answers), task)
        self._pool.count_made(len(result.rows), result.counts["completion_tokens"])
        return result


def _function_job(function: SamplerFunctionConfig, task: _Task, parts: int) -> PartJob:
    """The work of workers that hold a sampler function's process each."""
    identity = {
        **sampler_inputs(task.sampling),
        "sampling": task.sampling.model_dump(mode="json"),
        "weights": task.weights.fingerprint,
        "tokenizer": tokenizer_fingerprint(task.weights.model),
        "task": [task.seed, task.round_index, task.longest_prompt],
    }
    make = functools.partial(_FunctionWorker, task, search_path())
    return PartJob(make, sampler_workers(function, parts), fingerprint(identity))


class _FunctionWorker:
    """A worker with a sampler function."""

    def __init__(self, task: _Task, search: tuple[str, ...]) -> None:
        self._task = task
        self._sampler = FunctionSampler.load(task.weights.model, task.sampling, search)

    def __call__(self, prompts: list[Row]) -> PartResult:
        """One part, as of `_Sampler`."""
        fitting, requests = _requests(prompts, self._task)
        answers = self._sampler.answers(fitting, requests)
        return _candidates(prompts, _by_prompt(requests, answers), self._task)


def _candidates(prompts: list[Row], answers: dict[str, Answer], task: _Task) -> PartResult:
    rows: list[Row] = []
    refused: list[Row] = []
    temperatures = task.sampling.temperature_of_each if task.sampling.temperatures else None
    for prompt in prompts:
        answer = answers.get(prompt["prompt_id"]) or _too_long(prompt, task)
        if isinstance(answer, Refusal):
            refused.append(_quarantined(prompt, answer))
        else:
            rows += [_candidate(prompt, k, c, task, temperatures) for k, c in enumerate(answer)]
    return PartResult(rows, refused, _counts(rows))


def _requests(prompts: list[Row], task: _Task) -> tuple[list[Row], list[Request]]:
    """The prompts that leave room for a completion, and requests for them."""
    fitting = [row for row in prompts if len(row["prompt_ids"]) <= task.longest_prompt]
    return fitting, [Request(r["prompt_id"], r["prompt_ids"], _seed(r, task)) for r in fitting]


def _by_prompt(requests: list[Request], answers: list[Answer]) -> dict[str, Answer]:
    return dict(zip([request.prompt_id for request in requests], answers, strict=True))


def _seed(prompt: Row, task: _Task) -> int:
    return prompt_seed(task.seed, task.round_index, prompt["prompt_id"])


def _check_policy(found: str, expected: str) -> None:
    if found != expected:
        raise EngineError(
            f"an engine answered with the weights {found[:12]}",
            f"this stage samples from the weights {expected[:12]}",
            "this is a mistake in raydpo's engine: please report it",
        )


def _too_long(prompt: Row, task: _Task) -> Refusal:
    return Refusal(
        f"the prompt has {len(prompt['prompt_ids'])} tokens; {task.longest_prompt} leave room "
        f"for {task.sampling.max_completion_tokens} completion tokens"
    )


def _candidate(
    prompt: Row,
    index: int,
    completion: Completion,
    task: _Task,
    temperatures: tuple[float, ...] | None,
) -> Row:
    return {
        "prompt_id": prompt["prompt_id"],
        "candidate": index,
        "prompt": prompt["prompt"],
        "prompt_ids": prompt["prompt_ids"],
        "completion": completion.text,
        "completion_ids": completion.token_ids,
        "sampler_token_logps": completion.token_logps,
        "finish_reason": completion.finish_reason,
        "seed": _seed(prompt, task) + index,
        "policy": task.policy,
        "temperature": None if temperatures is None else temperatures[index],
        "prompt_messages": prompt.get("messages"),
        "metadata": prompt.get("metadata"),
    }


def _quarantined(prompt: Row, refusal: Refusal) -> Row:
    return {
        "stage": STAGE_NAME,
        "id": prompt["prompt_id"],
        "reason": refusal.reason,
        "row": json.dumps(prompt, ensure_ascii=False),
    }


def _counts(rows: list[Row]) -> dict[str, int]:
    missing = sum(row["sampler_token_logps"] is None for row in rows)
    return {
        **({WITHOUT_LOGPS: missing} if missing else {}),
        "completion_tokens": sum(len(row["completion_ids"]) for row in rows),
        "cut_at_max_tokens": sum(row["finish_reason"] == "length" for row in rows),
        **metadata_count(rows),
    }


def prompt_seed(seed: int, round_index: int, prompt_id: str) -> int:
    """Seed of a prompt's completion 0, from 0 to 2**62 - 1; completion k has this plus k.

    It has one bit less than an int64, so that adding k never leaves the type. It is a hash: with
    neighbouring seeds, completions of neighbouring prompts would be drawn with the same seed.
    """
    text = f"{seed}\n{round_index}\n{prompt_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 2
