"""Sampling, and the pool of engines that samples."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from raydpo.config.base import (
    Fraction,
    FunctionLimits,
    GpuShare,
    NonNegativeInt,
    OneOrMorePaths,
    OwnFunction,
    PositiveFloat,
    PositiveInt,
    Section,
    Temperature,
    path_shorthand,
)
from raydpo.config.content import Placement, Resolved
from raydpo.config.vllm_extra import EngineExtra, SamplingExtra


class EnginesConfig(Section):
    """The pool of vLLM engine actors."""

    count: Placement[PositiveInt] = 1
    """Number of engines."""
    tensor_parallel: Placement[PositiveInt] = 1
    """Number of GPUs, or on CPU of processes, that an engine is split over."""
    device: Placement[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where engines run; `auto` chooses CUDA if the Ray cluster has GPUs."""
    cpus: Placement[PositiveFloat] = 1.0
    """Number of Ray CPUs that an engine holds."""
    dtype: Resolved[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    """vLLM's dtype; `auto` takes `model.precision`."""
    max_sequence_tokens: Resolved[PositiveInt | None] = None
    """vLLM's max_model_len; without it the longest prompt plus the longest completion."""
    max_batch_sequences: Placement[PositiveInt | None] = None
    """vLLM's max_num_seqs; without it the default of vLLM's offline `LLM` on the machine (256 on CPU, 1,024 on an H100)."""
    max_batch_tokens: Placement[PositiveInt | None] = None
    """vLLM's max_num_batched_tokens; without it the default of vLLM's offline `LLM` (4,096 on CPU, 16,384 on an H100)."""
    gpu_share: Placement[GpuShare] = 1.0
    """Share of each of its GPUs that an engine holds in Ray; other processes may hold the rest."""
    sleep: Placement[bool] = False
    """Let engines sleep while no stage samples (vLLM's sleep mode): their weights wait in CPU memory, and other stages use the GPUs' memory."""
    gpu_memory_fraction: Placement[Annotated[float, Field(gt=0, le=1)]] = 0.9
    """vLLM's gpu_memory_utilization."""
    cpu_kv_cache_gib: Placement[PositiveInt] = 1
    """Memory for keys and values of an engine on CPU, in GiB; with `tensor_parallel`, of each of its processes."""
    enforce_eager: Placement[bool | None] = None
    """vLLM's enforce_eager; without it true on CPU and false on CUDA."""
    max_restarts: Placement[NonNegativeInt] = 3
    """How many times raydpo restarts a dead engine; if one dies more often, the others take over its work. The loss of a node does not count as a death."""
    answer_within_seconds: Placement[PositiveFloat] = 120.0
    """Seconds without an answer after which an engine is ended and started again, as if dead; a single step may take ten times as long."""
    max_lora_rank: Placement[Literal[0, 1, 8, 16, 32, 64, 128, 256, 320, 512]] = 0
    """Largest rank of a LoRA adapter that an engine accepts; with 0 it accepts none."""
    weight_transfer: Placement[Literal["files", "broadcast"]] = "files"
    """How a trained policy gets into the engines of online rounds: each engine reads its files, or the train worker sends it over NCCL (gloo on CPU)."""
    probe_tolerance: Placement[PositiveFloat | None] = None
    """Largest difference, in nats, of a token's log-prob between an engine and the trainer's forward pass. Without it, 1e-3 in float32 and 0.25 in half precision."""
    extra: Resolved[EngineExtra] = Field(default_factory=dict[str, Any])
    """Further arguments of vLLM's `EngineArgs`, by name, such as `{attention_backend: TRITON_ATTN}`; raydpo refuses those that it sets itself, and those that break reproducibility."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> EnginesConfig:
        if self.tensor_parallel > 1 and self.gpu_share < 1:
            raise ValueError("Ray gives several GPUs whole: `gpu_share` is 1 with tensor_parallel")
        if self.sleep and not 0.5 < self.gpu_share < 1:
            raise ValueError(
                "engines that sleep hold more than half of a GPU, so that no two meet on one, and "
                "leave room for the others: set `gpu_share` to 0.6 and the stages' `gpus_per_worker` "
                "to 0.4"
            )
        sequences, tokens = self.max_batch_sequences, self.max_batch_tokens
        if sequences is not None and tokens is not None and tokens < sequences:
            raise ValueError("a step has a token of each sequence: max_batch_tokens is too small")
        return self


#: What a sampler function may be given for each prompt, by name.
PER_PROMPT: Final = ("prompts", "prompt_ids", "seeds")
#: Settings that versions after 0.2 added, which are in a key only if they differ from the default.
_LATER: Final = (
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperatures",
    "extra",
)
_Penalty = Annotated[float, Field(ge=-2, le=2)]
#: The settings that it may be given by their names in the section.
SAMPLER_SETTINGS: Final = (
    "candidates",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_completion_tokens",
    "max_completion_tokens",
    "stop",
)


class SamplerFunctionConfig(FunctionLimits):
    """A function of yours that samples in place of vLLM; see docs/sampling.md. A plain string stands for `path`."""

    path: Resolved[OwnFunction]
    """`package.module:name` of the function, which raydpo calls by the names in its signature."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of the function, by name."""
    depends_on: Resolved[OneOrMorePaths] = ()
    """Files and folders that the function reads; if one changes, raydpo samples again."""
    returns_logprobs: Placement[bool] = False
    """Whether every completion comes with `logprobs`, which `policy_gradient` needs; one without them is then refused."""
    workers: Placement[PositiveInt] = 1
    """Number of Ray Data workers; each has a process with the function."""
    cpus_per_worker: Placement[PositiveFloat] = 1.0
    """Number of Ray CPUs that a worker holds; on the CPU its process gets as many threads."""
    gpus_per_worker: Placement[Fraction] = 0.0
    """Share of a GPU that a worker holds if the Ray cluster has GPUs."""

    @model_validator(mode="after")
    def _options_are_its_own(self) -> SamplerFunctionConfig:
        given = {*PER_PROMPT, *SAMPLER_SETTINGS, "model"}
        if taken := sorted(given & self.options.keys()):
            raise ValueError(f"`{'`, `'.join(taken)}` is given anyway: take it out of `options`")
        return self


class SamplingConfig(Section):
    """Sampling of K completions for each prompt from the reference policy."""

    function: Resolved[
        Annotated[
            SamplerFunctionConfig | None,
            BeforeValidator(
                path_shorthand, json_schema_input_type=str | SamplerFunctionConfig | None
            ),
        ]
    ] = None
    """A function of yours that samples; without it vLLM samples."""
    candidates: Resolved[Annotated[int, Field(ge=1)]] = 4
    """K, the number of completions sampled for each prompt."""
    temperature: Temperature = 1.0
    """Softmax temperature; 0 means greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of nucleus sampling."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample only among the k likeliest tokens; 0 allows all tokens."""
    min_p: Resolved[Annotated[float, Field(ge=0, le=1)]] = 0.0
    """Sample only among tokens that are at least this share as likely as the likeliest one; 0 allows all tokens."""
    presence_penalty: Resolved[_Penalty] = 0.0
    """Lowers the logits of tokens that the completion has by this much."""
    frequency_penalty: Resolved[_Penalty] = 0.0
    """Lowers the logits of tokens by this much for each time that the completion has them."""
    repetition_penalty: Resolved[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = 1.0
    """Divides positive logits of tokens that prompt or completion have by this, and multiplies negative ones; 1 changes nothing."""
    temperatures: Resolved[tuple[PositiveFloat, ...]] = ()
    """Several temperatures in place of `temperature`; each draws an equal share of the candidates, in this order, and each row names its own."""
    min_completion_tokens: NonNegativeInt = 0
    """Minimum number of tokens before EOS or a stop string may end a completion."""
    max_completion_tokens: PositiveInt = 256
    """Maximum completion length in tokens, including EOS."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    extra: Resolved[SamplingExtra] = Field(default_factory=dict[str, Any])
    """Further arguments of vLLM's `SamplingParams`, by name, such as `{bad_words: [http]}`; raydpo refuses those that it sets itself, and those that break reproducibility."""
    engines: EnginesConfig = EnginesConfig()
    """The pool of vLLM engine actors."""

    @property
    def later_content(self) -> dict[str, Any]:
        """The settings of later versions that change the samples, for a stage's key.

        Those with their default are left out, so that runs of earlier versions keep their keys.
        """
        plain = SamplingConfig()
        values = {name: getattr(self, name) for name in _LATER}
        changed = {name: v for name, v in values.items() if v != getattr(plain, name)}
        return changed | ({"engine_extra": self.engines.extra} if self.engines.extra else {})

    @property
    def temperature_of_each(self) -> tuple[float, ...]:
        """The temperature of each of a prompt's candidates."""
        share = self.candidates // max(1, len(self.temperatures))
        several = tuple(one for one in self.temperatures for _ in range(share))
        return several or (self.temperature,) * self.candidates

    @model_validator(mode="after")
    def _temperatures_share_the_candidates(self) -> SamplingConfig:
        if not self.temperatures:
            return self
        if "temperature" in self.model_fields_set and self.temperature != 1.0:
            raise ValueError(
                "`temperature` is for all candidates and `temperatures` for shares of them: give one"
            )
        if self.candidates % len(self.temperatures):
            raise ValueError(
                f"{self.candidates} candidates and {len(self.temperatures)} `temperatures`: each "
                "draws equally many, so let candidates be a multiple of their number"
            )
        return self

    @model_validator(mode="after")
    def _functions_draw_at_one_temperature(self) -> SamplingConfig:
        given = [name for name in ("temperatures", "extra") if getattr(self, name)]
        if self.function is not None and given:
            raise ValueError(
                f"`{given[0]}` is for vLLM, and a `function` samples: take it out; a function has "
                "`options`"
            )
        return self

    @model_validator(mode="after")
    def _functions_have_no_engines(self) -> SamplingConfig:
        given = sorted(
            name
            for name, value in self.engines
            if name != "probe_tolerance" and value != getattr(EnginesConfig(), name)
        )
        if self.function is not None and given:
            raise ValueError(
                f"`engines.{'`, `engines.'.join(given)}` is for vLLM, and a `function` samples: "
                "take it out; `function` has `workers`, `cpus_per_worker` and `gpus_per_worker`"
            )
        return self
