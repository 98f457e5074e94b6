"""One vLLM engine that serves several calls at once, and whose weights can be replaced.

A call brings prompts as token ids, each with its seed, and names the weights that it is for. The
engine returns K completions per prompt, as the emitted token ids, and the fingerprint of the
weights that emitted them. One thread owns the engine: it loads it, adds the requests of all
callers and steps it, so that overlapping calls share batches. The class knows nothing of Ray;
`pool.py` makes actors of it.

An engine with other weights than those of the call finishes the calls that it began with them,
loads the new ones, and then answers. So a restarted engine, which holds its first weights, cannot
answer with them by mistake.

An engine over several GPUs (tensor_parallel > 1) is one actor that holds them all. vLLM starts
its ranks as processes on that node (its `mp` executor), which end with the engine: it does not
span nodes. On CPU the ranks are processes too.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.core.errors import EngineError, RaydpoError
from raydpo.core.imports import uncollected
from raydpo.models.loading import adapter_base
from raydpo.sampling.arguments import load_engine, sampling_parameters, scoring_parameters
from raydpo.sampling.transfer import Delivery
from raydpo.sampling.weights import HeldWeights, Weights, weights_of

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
    top_k or min_completion_tokens change anything; None from a sampler function that gives
    none. `finish_reason` is "stop" or "length".
    """

    token_ids: list[int]
    token_logps: list[float] | None
    finish_reason: str
    text: str


@dataclass(frozen=True)
class Refusal:
    """Why the engine did not take a prompt."""

    reason: str


@dataclass(frozen=True)
class Answers:
    """What an engine gave for a list of requests, in their order; `policy` made them."""

    policy: str
    answers: list[list[Completion] | Refusal]


@dataclass(frozen=True)
class Pulse:
    """An engine's report: its process, steps so far, and whether one is under way."""

    process_id: int
    steps: int
    stepping: bool


@dataclass
class _Job:
    """A request on its way through the stepping thread; without parameters, only its weights."""

    weights: Weights
    prompt_ids: list[int]
    parameters: SamplingParams | None
    answer: Future[RequestOutput | Refusal | float]
    policy: str = ""


@dataclass
class _Chore:
    """Work for the stepping thread while no request is under way."""

    do: Callable[[LLMEngine, HeldWeights], None]
    done: Future[None]


class Engine:
    """A vLLM engine and the thread that owns it. Its methods may be called by many threads."""

    def __init__(self, model: ModelConfig, arguments: dict[str, Any]) -> None:
        self._model = adapter_base(model) or model
        self._arguments = arguments
        self._policy: Future[str] = Future()
        self._arrivals: queue.SimpleQueue[_Job | _Chore] = queue.SimpleQueue()
        self._held_back: _Job | _Chore | None = None
        self._jobs: dict[str, _Job] = {}
        self._numbers = itertools.count()
        self._steps = 0
        self._stepping = False
        threading.Thread(target=self._run, name="raydpo-engine", daemon=True).start()

    def process_id(self) -> int:
        """The engine's process; answers as soon as the actor has a place, before it loads."""
        return os.getpid()

    def pulse(self) -> Pulse:
        """Return a sign of life at once, also while the engine loads."""
        return Pulse(os.getpid(), self._steps, self._stepping)

    def ready(self) -> str:
        """Wait until the model is loaded; the fingerprint of its weights.

        Raises:
            ModelError: vLLM cannot load the model.
        """
        return self._policy.result()

    def hold(self, weights: Weights) -> float:
        """Bring the engine to these weights; the seconds that loading took, 0 if it holds them.

        Raises:
            ModelError, EngineError: see `weights.HeldWeights.bring`.
        """
        [job] = self._work(weights, [[]], [None])
        return cast(float, job.answer.result())

    def sleep(self) -> None:
        """Sleep until the next call.

        On CUDA weights go to CPU memory and the cache of keys and values is given up (vLLM's
        level 1); on CPU vLLM only pauses.
        """
        self._when_idle(lambda engine, _: engine.sleep(level=1))

    def receive(self, delivery: Delivery) -> None:
        """Take weights that another process sends.

        Raises:
            ModelError: they are of another model, or do not come.
        """
        self._when_idle(lambda _, held: held.receive(delivery))

    def generate(
        self, requests: list[Request], sampling: SamplingConfig, weights: Weights
    ) -> Answers:
        """Complete each prompt `sampling.candidates` times with the weights.

        Raises:
            ModelError, EngineError: the model or the weights cannot be loaded.
            ConfigError: vLLM refuses the sampling settings.
        """
        asked = [
            (request.prompt_ids, parameters)
            for request in requests
            for parameters in sampling_parameters(sampling, request.seed)
        ]
        jobs = self._work(weights, [ids for ids, _ in asked], [given for _, given in asked])
        results = [job.answer.result() for job in jobs]
        share = max(1, len(sampling.temperatures))
        answers = [
            _completions(results[at : at + share], sampling) for at in range(0, len(results), share)
        ]
        return Answers(jobs[-1].policy if jobs else weights.fingerprint, answers)

    def score(
        self, sequences: list[tuple[list[int], list[int]]], weights: Weights
    ) -> list[list[float]]:
        """Log-probs, in nats, of the completion's tokens of each (prompt, completion).

        A sequence that fills the engine to its last position loses its last token.

        Raises:
            ModelError, EngineError: the weights cannot be loaded, or vLLM refuses a sequence.
        """
        room = self._arguments["max_model_len"] - 1
        ids = [(prompt + completion)[:room] for prompt, completion in sequences]
        jobs = self._work(weights, ids, [scoring_parameters()] * len(ids))
        return [
            _prompt_logps(job.answer.result(), start=len(prompt))
            for job, (prompt, _) in zip(jobs, sequences, strict=True)
        ]

    def _work(
        self,
        weights: Weights,
        prompts: list[list[int]],
        parameters: list[SamplingParams] | list[None],
    ) -> list[_Job]:
        """Pass jobs to the stepping thread, once the engine is loaded."""
        self._wait_until_loaded()
        jobs = [
            _Job(weights, prompt, given, Future())
            for prompt, given in zip(prompts, parameters, strict=True)
        ]
        for job in jobs:
            self._arrivals.put(job)
        return jobs

    def _when_idle(self, do: Callable[[LLMEngine, HeldWeights], None]) -> None:
        self._wait_until_loaded()
        chore = _Chore(do, Future())
        self._arrivals.put(chore)
        chore.done.result()

    def _wait_until_loaded(self) -> None:
        """Work comes after a first `ready`: an engine that cannot load now was started again.

        What stands in its way may pass, memory that is still in use. So the process ends, and
        Ray starts another as often as it may; then others do the work.
        """
        try:
            self.ready()
        except Exception:
            logger.exception("the model was loaded before, and is not now; %d ends", os.getpid())
            os._exit(1)

    def _run(self) -> None:
        try:
            weights = weights_of(self._model)
            with uncollected():  # the import of vLLM is most of an engine's start
                engine = load_engine(self._model, self._arguments)
                held = HeldWeights(engine, weights)
        except BaseException as error:  # noqa: BLE001 - it is raised again in every caller
            self._policy.set_exception(error)
            return
        self._policy.set_result(weights.fingerprint)
        try:
            while True:
                self._admit(engine, held)
                for output in self._step(engine):
                    self._deliver(output)
        except BaseException:
            # A step that failed leaves the engine in a state that nobody knows. The process
            # ends: Ray starts another, and the calls that were open are made again.
            logger.exception("an engine step failed; process %d ends", os.getpid())
            os._exit(1)

    def _step(self, engine: LLMEngine) -> list[RequestOutput]:
        self._stepping = True
        try:
            return cast("list[RequestOutput]", engine.step())
        finally:
            self._stepping = False
            self._steps += 1

    def _admit(self, engine: LLMEngine, held: HeldWeights) -> None:
        """Start what has arrived; with nothing to step, wait for an arrival."""
        while (job := self._next(block=not engine.has_unfinished_requests())) is not None:
            wanted = job.weights.fingerprint if isinstance(job, _Job) else None
            if wanted != held.fingerprint and engine.has_unfinished_requests():
                self._held_back = job  # what was begun with other weights ends with them
                return
            self._start(engine, held, job)

    def _next(self, block: bool) -> _Job | _Chore | None:
        if self._held_back is not None:
            job, self._held_back = self._held_back, None
            return job
        try:
            return self._arrivals.get(block=block)
        except queue.Empty:
            return None

    def _start(self, engine: LLMEngine, held: HeldWeights, job: _Job | _Chore) -> None:
        if held.broken:
            raise RuntimeError("vLLM failed in the middle of loading weights")
        if engine.is_sleeping():
            engine.wake_up()
        if isinstance(job, _Chore):
            _do(job, engine, held)
            return
        try:
            seconds = held.bring(job.weights)
        except RaydpoError as error:
            job.answer.set_exception(error)
            return
        job.policy = cast(str, held.fingerprint)
        if job.parameters is None:
            job.answer.set_result(seconds)
            return
        name = str(next(self._numbers))
        self._jobs[name] = job
        try:
            engine.add_request(
                name,
                {"prompt_token_ids": job.prompt_ids},
                job.parameters,
                lora_request=held.lora,
            )
        except Exception as error:  # noqa: BLE001 - vLLM's own errors have no common base
            del self._jobs[name]
            job.answer.set_result(Refusal(f"vLLM refused it: {error}"))

    def _deliver(self, output: RequestOutput) -> None:
        if output.finished:
            self._jobs.pop(output.request_id).answer.set_result(output)


def _do(chore: _Chore, engine: LLMEngine, held: HeldWeights) -> None:
    try:
        chore.done.set_result(chore.do(engine, held))
    except RaydpoError as error:
        chore.done.set_exception(error)


def _completions(results: list[Any], sampling: SamplingConfig) -> list[Completion] | Refusal:
    """Return K completions; a greedy one is made once and repeated, since all K are equal."""
    refused = next((result for result in results if isinstance(result, Refusal)), None)
    if refused is not None:
        return refused
    completions = [_completion(item) for result in results for item in result.outputs]
    return completions * (sampling.candidates // len(completions))


def _completion(output: Any) -> Completion:
    token_ids = list(output.token_ids)
    return Completion(
        token_ids=token_ids,
        token_logps=_logps(token_ids, output.logprobs),
        finish_reason=output.finish_reason,
        text=output.text,
    )


def _prompt_logps(answer: Any, start: int) -> list[float]:
    """Log-probs of a scored sequence's tokens from `start` on."""
    if isinstance(answer, Refusal):
        raise EngineError(
            f"an engine cannot score a sequence: {answer.reason}",
            "a sequence to score is a prompt and a completion that the engine could have made",
            "give shorter sequences, with token ids of the model's own tokenizer",
        )
    return _logps(answer.prompt_token_ids[start:], answer.prompt_logprobs[start:])


def _logps(token_ids: list[int], entries: Any) -> list[float]:
    return [entry[token].logprob for token, entry in zip(token_ids, entries, strict=True)]
