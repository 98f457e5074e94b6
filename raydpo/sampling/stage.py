"""The sampling stage: prompts in, candidates out, K for each prompt.

What comes in: the prompts table and the policy. What goes out: the candidates table,
the same rows whatever the number of engines and the order of the work. Light Ray Data
workers carry whole parts to the engines, several for each, so that none runs dry.
"""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from raydpo.config import ModelConfig, SamplingConfig
from raydpo.config_base import ForwardConfig
from raydpo.config_content import content_of
from raydpo.errors import EngineError
from raydpo.models import tokenizer_fingerprint
from raydpo.parts import PartJob, PartStage, PartWork, Table, Workers, to_table
from raydpo.progress import logger
from raydpo.run import PartResult, Stage
from raydpo.sampling.arguments import engine_dtype, max_sequence_tokens
from raydpo.sampling.engine import Completion, Refusal, Request
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.seeds import prompt_seed
from raydpo.sampling.weights import Weights, weights_of
from raydpo.storage import Folder
from raydpo.tables import Row

STAGE_NAME: Final = "sampling"
#: Parts that an engine works on at once: the next is there before the last completion ends.
PARTS_IN_FLIGHT: Final = 2


@dataclass(frozen=True)
class _Task:
    """What a worker needs to know to sample a part; `longest_prompt` is in tokens."""

    sampling: SamplingConfig
    weights: Weights
    seed: int
    round_index: int
    longest_prompt: int


def sampling_work(
    *,
    folder: Folder,
    prompts: Table,
    model: ModelConfig,
    sampling: SamplingConfig,
    seed: int,
    round_index: int,
    max_prompt_tokens: int,
    what: str,
    max_quarantined_fraction: float,
    pool: Callable[[], EnginePool] | None = None,
) -> PartWork:
    """Sample K completions for each prompt.

    Args:
        folder: where the candidates table goes.
        prompts: the prompts table; part i becomes part i of the candidates.
        model: the policy that samples: a model's folder, or an adapter's.
        sampling: K, temperature and the like, and the engines.
        seed: the run's seed; with the round and the prompt's id it fixes the tokens.
        round_index: the round.
        max_prompt_tokens: longest prompt, in tokens; a longer one may be refused.
        what: the stage and round, for the log.
        max_quarantined_fraction: share of the prompts that may be refused.
        pool: gives engines that serve other stages too (`Engines.pool`), and is asked only if
            a part is missing; the weights are pushed into them. Without it engines are
            started for this stage.

    Raises:
        ConfigError, ModelError, EngineError: the engines cannot be started or take these
            weights, or died.
        QuarantineBudgetError: too many prompts were refused.
    """
    tokens = max_sequence_tokens(model, sampling, max_prompt_tokens)
    longest = tokens - sampling.max_completion_tokens
    task = _Task(sampling, weights_of(model), seed, round_index, longest)

    def open_job(missing: int) -> AbstractContextManager[PartJob]:
        engines = _shared(pool(), task) if pool else _pool_for(missing)
        return _job(engines, task, missing, what)

    def _pool_for(parts: int) -> AbstractContextManager[EnginePool]:
        return engine_pool(model, sampling, max_prompt_tokens, what, at_most=parts)

    stage = _stage(folder, prompts, model, task)
    return PartWork([PartStage(stage, [prompts], what)], open_job, max_quarantined_fraction)


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


def _stage(folder: Folder, prompts: Table, model: ModelConfig, task: _Task) -> Stage:
    """The stage's identity: what the tokens depend on, and nothing about the machines."""
    return Stage(
        folder=folder,
        name=STAGE_NAME,
        table="candidates",
        inputs={
            "prompts": prompts.fingerprint,
            "policy": task.weights.fingerprint,
            "tokenizer": tokenizer_fingerprint(model),
        },
        settings={
            **content_of(model, without=ForwardConfig),
            **content_of(task.sampling),
            "candidates": task.sampling.candidates,
            "dtype": engine_dtype(model, task.sampling),
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
        count = min(parts, PARTS_IN_FLIGHT * len(pool.engines))
        # The workers only carry: they hold no CPU, so engines may hold all there are. Each process
        # keeps its bond with an engine through the stage; another stage may have other engines.
        make = functools.partial(_Sampler, pool, task)
        yield PartJob(make, Workers(count, cpus=0.0), identity=uuid.uuid4().hex)
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


class _Sampler:
    """A worker's bond with an engine, until that engine is dead."""

    def __init__(self, pool: EnginePool, task: _Task) -> None:
        self._pool = pool
        self._task = task
        self._engine = pool.take()

    def __call__(self, prompts: list[Row]) -> PartResult:
        """One part: prompts -> K candidates each, neighbours, in the prompts' order."""
        task = self._task
        fitting = [row for row in prompts if len(row["prompt_ids"]) <= task.longest_prompt]
        requests = [_request(row, task) for row in fitting]
        self._engine, given = self._pool.generate(
            self._engine, requests, task.sampling, task.weights
        )
        _check_policy(given.policy, task.weights.fingerprint)
        answers = dict(zip([r.prompt_id for r in requests], given.answers, strict=True))
        result = _candidates(prompts, answers, task)
        self._pool.count(len(result.rows), result.counts["completion_tokens"])
        return result


def _candidates(
    prompts: list[Row], answers: dict[str, list[Completion] | Refusal], task: _Task
) -> PartResult:
    rows: list[Row] = []
    refused: list[Row] = []
    for prompt in prompts:
        answer = answers.get(prompt["prompt_id"]) or _too_long(prompt, task)
        if isinstance(answer, Refusal):
            refused.append(_quarantined(prompt, answer))
        else:
            rows += [_candidate(prompt, k, c, task) for k, c in enumerate(answer)]
    return PartResult(rows, refused, _counts(rows))


def _request(prompt: Row, task: _Task) -> Request:
    return Request(prompt["prompt_id"], prompt["prompt_ids"], _seed(prompt, task))


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


def _candidate(prompt: Row, index: int, completion: Completion, task: _Task) -> Row:
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
        "policy": task.weights.fingerprint,
    }


def _quarantined(prompt: Row, refusal: Refusal) -> Row:
    return {
        "stage": STAGE_NAME,
        "id": prompt["prompt_id"],
        "reason": refusal.reason,
        "row": json.dumps(prompt, ensure_ascii=False),
    }


def _counts(rows: list[Row]) -> dict[str, int]:
    return {
        "completion_tokens": sum(len(row["completion_ids"]) for row in rows),
        "cut_at_max_tokens": sum(row["finish_reason"] == "length" for row in rows),
    }
