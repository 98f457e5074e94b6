"""Sample with a function of the user's own, in a worker, in place of an engine.

The function runs in a process of its own, which may end or hang without the worker. `received.py`
checks each completion that it returns. A prompt whose completions cannot be used is refused with
the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydpo.config.job import ModelConfig, SamplingConfig
from raydpo.config.sampling import SAMPLER_SETTINGS, SamplerFunctionConfig
from raydpo.core.cluster import uses_cuda
from raydpo.core.environment import worker_environment
from raydpo.core.errors import DataError
from raydpo.core.halving import Halving
from raydpo.core.own_process import Ended, cluster_environment
from raydpo.core.parts import Workers
from raydpo.core.tables import Row
from raydpo.models.loading import local_folder
from raydpo.sampling.engine import Completion, Refusal, Request
from raydpo.sampling.function import SamplerProcess
from raydpo.sampling.own_sampler import OWED, WHAT
from raydpo.sampling.received import Receiver, begins_with

Answer = list[Completion] | Refusal


def sampler_workers(function: SamplerFunctionConfig, parts: int) -> Workers:
    """Return the Ray Data workers that hold the function's processes."""
    cuda = function.gpus_per_worker > 0 and uses_cuda("auto")
    return Workers(
        min(function.workers, parts),
        cpus=function.cpus_per_worker,
        gpus=function.gpus_per_worker if cuda else 0.0,
        environment=worker_environment(cuda, function.cpus_per_worker),
    )


@dataclass(frozen=True)
class FunctionSampler:
    """A sampler function in a worker: its process, and what checks its completions."""

    process: SamplerProcess
    function: SamplerFunctionConfig
    sampling: SamplingConfig
    model_folder: str
    receiver: Receiver

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, search: tuple[str, ...]
    ) -> FunctionSampler:
        """Prepare it in a worker; modules are looked for in the folders `search` first.

        Raises:
            ModelError: the model's folder or its tokenizer cannot be read.
        """
        function = sampling.function
        assert function is not None
        process = SamplerProcess(
            function.path,
            function.import_seconds,
            function.max_memory_gib,
            search,
            cluster_environment(),
            options=tuple(function.options),
        )
        folder, receiver = str(local_folder(model)), Receiver.of(model, sampling)
        return cls(process, function, sampling, folder, receiver)

    def answers(self, prompts: list[Row], requests: list[Request]) -> list[Answer]:
        """Return K completions or a refusal for each prompt.

        Args:
            prompts: rows of the prompts table.
            requests: the same prompts, with their seeds.

        Raises:
            ConfigError: the function cannot be called.
            DataError: it raises, ends its process or hangs for every prompt, or its result is not
                a list with an entry for each prompt.
        """

        def ask(begin: int, end: int, seconds: float, some_of_many: bool) -> list[Answer] | Ended:
            rows = prompts[begin:end], requests[begin:end]
            question = {"given": self._given(*rows), "some_of_many": some_of_many}
            answer = self.process.ask(question, seconds, f"on {end - begin} prompts")
            if isinstance(answer, Ended):
                return answer
            pairs = list(zip(rows[1], answer["answers"], strict=True))
            self._refuse_prompts(pairs)
            return [self.receiver.received(request.prompt_ids, found) for request, found in pairs]

        halving = Halving[Answer](
            len(prompts),
            ask,
            lambda how: Refusal(f"the sampler function {how}"),
            self.function.timeout_seconds,
            self.function.max_attempts,
            self._name,
            "prompts",
            OWED,
        )
        return halving.answers()

    def _refuse_prompts(self, pairs: list[tuple[Request, dict[str, Any] | str]]) -> None:
        """Raise if the function returned the prompts with the completions.

        One completion may repeat its prompt. That all completions of a batch do is a mistake.
        """
        completions = [
            (request.prompt_ids, item["token_ids"])
            for request, answer in pairs
            if isinstance(answer, dict)
            for item in answer["completions"]
            if "token_ids" in item
        ]
        several = len({tuple(prompt) for prompt, _ in completions}) > 1
        if several and all(begins_with(ids, prompt) for prompt, ids in completions):
            raise DataError(
                f"{self._name} returned {len(completions)} completions, and each begins with its "
                "prompt's tokens",
                OWED,
                "cut them: `generate` of transformers returns the prompt too, so take "
                "`output[len(prompt_ids):]`",
            )

    @property
    def _name(self) -> str:
        return f"{WHAT} {self.function.path!r}"

    def _given(self, prompts: list[Row], requests: list[Request]) -> dict[str, Any]:
        """The values of all parameters that the function may take."""
        count = self.sampling.candidates
        return {
            "prompts": [row["prompt"] for row in prompts],
            "prompt_ids": [request.prompt_ids for request in requests],
            "seeds": [[request.seed + k for k in range(count)] for request in requests],
            "model": self.model_folder,
            **{name: getattr(self.sampling, name) for name in SAMPLER_SETTINGS},
            **self.function.options,
        }
