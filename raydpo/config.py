"""The whole configuration: frozen pydantic models, one a stage, unknown keys refused.

What comes in: the mapping of a YAML file (see `config_file.py`). What goes out: a
`Config`. Each field's sentence stands below it. No torch and no Ray are imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from raydpo.config_base import (
    Fraction,
    GpuShare,
    Model,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    SourceFormat,
    Temperature,
    path_shorthand,
)
from raydpo.config_content import Placement, Resolved
from raydpo.config_objectives import DpoObjective
from raydpo.config_online import OnlineConfig, ReplayConfig, StoppingConfig
from raydpo.config_paths import LocalPath, PathOrName
from raydpo.config_training import (
    LoraSettings,
    SftConfig,
    TrainerConfig,
    TrainingConfig,
)

__all__ = [
    "Builder",
    "Config",
    "DpoObjective",
    "EnginesConfig",
    "EvaluationConfig",
    "LabelingConfig",
    "LoraSettings",
    "ModelConfig",
    "OnlineConfig",
    "PairsConfig",
    "PeopleConfig",
    "PreferencesConfig",
    "PromptsConfig",
    "ReferenceConfig",
    "ReplayConfig",
    "RewardConfig",
    "SamplingConfig",
    "SftConfig",
    "SourceFormat",
    "StoppingConfig",
    "TrainerConfig",
    "TrainingConfig",
]


Chat = Literal["auto", "always", "never"]


class PromptsConfig(Section):
    """Where prompts come from and how they become token ids."""

    path: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split: of a `datasets` dataset, or of files whose names say theirs, as train-* and test-* do."""
    column: str | None = None
    """The column with text or messages; without it `prompt`, `messages` or `text`, the first there is."""
    id_column: str | None = None
    """The column with unique ids; without it ids are hashes of the content."""
    system_prompt: str | None = None
    """A system message put before conversations that have none."""
    chat: Chat = "auto"
    """Plain text as a user message of the chat template: `auto` leaves plain text plain."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt, in tokens, BOS and template included."""
    too_long: Literal["quarantine", "keep_start", "keep_end", "error"] = "quarantine"
    """What happens to a longer prompt; a conversation is cut in its words and turns, and still asks for an answer."""
    deduplicate: bool = False
    """Drop prompts whose token ids stood before (counted); off, duplicates are rows of their own."""
    limit: PositiveInt | None = None
    """Read only so many rows of the source."""


Prompts = Annotated[PromptsConfig, BeforeValidator(path_shorthand)]


class PreferencesConfig(Section):
    """Preference data that exists already; it replaces sampling and labelling."""

    path: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split: of a `datasets` dataset, or of files whose names say theirs, as train-* and test-* do."""
    layout: Literal[
        "auto", "explicit", "implicit", "transcript", "sharegpt", "ranked", "unpaired"
    ] = "auto"
    """Explicit prompt; prompt inside chosen and rejected; `Human:/Assistant:` transcripts; ShareGPT turns; rated K-wise lists; single completions with a `label`."""
    id_column: str | None = None
    """The column with unique ids; without it ids are hashes of the content."""
    system_prompt: str | None = None
    """A system message put before conversations that have none."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt, in tokens, BOS and template included."""
    max_completion_tokens: PositiveInt = 512
    """Longest completion, in tokens, EOS included."""
    too_long_prompt: Literal["quarantine", "keep_start", "keep_end", "error"] = "quarantine"
    """What happens to a longer prompt; a conversation is cut in its words and turns, and still asks for an answer."""
    too_long_completion: Literal["quarantine", "keep_start", "error"] = "quarantine"
    """What happens to a longer completion; `keep_start` cuts it, without an end token."""
    min_margin: NonNegativeFloat = 0.0
    """Ranked lists: a pair is built where the ratings differ by more than this."""
    weighting: Literal["pair", "group"] = "pair"
    """Ranked lists: each pair weighs 1, or the pairs of a list weigh 1 together."""
    ranking_ties: Literal["drop", "by_candidate"] = "drop"
    """Ranked lists: equal ratings leave a list without a ranking, or the first one comes first; counted."""
    rating_temperature: PositiveFloat = 1.0
    """Ranked lists: the soft label of a pair is sigmoid(difference of ratings / temperature)."""
    limit: PositiveInt | None = None
    """Read only so many rows of the source."""


Preferences = Annotated[PreferencesConfig, BeforeValidator(path_shorthand)]


class EnginesConfig(Section):
    """The pool of vLLM engine actors."""

    count: Placement[PositiveInt] = 1
    """Number of engines."""
    tensor_parallel: Placement[PositiveInt] = 1
    """GPUs that an engine is split over; on CPU, processes."""
    device: Placement[Literal["auto", "cpu", "cuda"]] = "auto"
    """`auto`: CUDA where the Ray cluster has GPUs."""
    cpus: Placement[PositiveFloat] = 1.0
    """Ray CPUs that an engine holds."""
    dtype: Resolved[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    """vLLM's dtype; `auto` takes `model.precision`."""
    max_sequence_tokens: Resolved[PositiveInt | None] = None
    """vLLM's max_model_len; without it the longest prompt plus the longest completion."""
    max_batch_sequences: Placement[PositiveInt | None] = None
    """vLLM's max_num_seqs; without it what vLLM's offline `LLM` takes on the machine (256 on CPU, 1,024 on an H100)."""
    max_batch_tokens: Placement[PositiveInt | None] = None
    """vLLM's max_num_batched_tokens; without it what vLLM's offline `LLM` takes (4,096 on CPU, 16,384 on an H100)."""
    gpu_share: Placement[GpuShare] = 1.0
    """Share of each of its GPUs that an engine holds in Ray; what is left others may hold."""
    sleep: Placement[bool] = False
    """Engines sleep while no stage samples (vLLM's sleep mode): their weights wait in CPU memory, and other stages have the GPUs' memory."""
    gpu_memory_fraction: Placement[Annotated[float, Field(gt=0, le=1)]] = 0.9
    """vLLM's gpu_memory_utilization."""
    cpu_kv_cache_gib: Placement[PositiveInt] = 1
    """Memory for keys and values of an engine on CPU, in GiB; of each of its processes with `tensor_parallel`."""
    enforce_eager: Placement[bool | None] = None
    """vLLM's enforce_eager; without it true on CPU and false on CUDA."""
    max_restarts: Placement[NonNegativeInt] = 3
    """How often a dead engine is started again; one that dies more often leaves its work to the others."""
    max_lora_rank: Placement[Literal[0, 1, 8, 16, 32, 64, 128, 256, 320, 512]] = 0
    """Largest rank of a LoRA adapter that an engine takes; 0 takes none."""
    weight_transfer: Placement[Literal["files", "broadcast"]] = "files"
    """How a trained policy gets into the engines of online rounds: each reads its files, or the train worker sends it over NCCL (gloo on CPU)."""
    probe_tolerance: Placement[PositiveFloat | None] = None
    """Largest difference, in nats, of a token's log-prob between an engine and the trainer's forward pass; without it 1e-3 in float32 and 0.25 in half precision."""

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


class SamplingConfig(Section):
    """K completions for each prompt, from the reference policy."""

    candidates: Resolved[Annotated[int, Field(ge=1)]] = 4
    """K, the completions sampled for each prompt."""
    temperature: Temperature = 1.0
    """Softmax temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among the k likeliest tokens; 0 takes all."""
    min_completion_tokens: NonNegativeInt = 0
    """EOS and stop strings wait until so many tokens are there."""
    max_completion_tokens: PositiveInt = 256
    """Longest completion, in tokens, EOS included."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    engines: EnginesConfig = EnginesConfig()
    """The pool of vLLM engine actors."""


class ClassifierReading(Section):
    """What of a classifier is the reward, and of which text; functions read none of it."""

    label: str | int | None = None
    """The class whose score counts (name or index); one-output reward models need none."""
    output: Literal["probability", "log_odds", "logit"] = "log_odds"
    """What of the class is the reward: p, log p/(1-p), or the raw logit."""
    input: Literal["completion", "prompt_and_completion"] = "prompt_and_completion"
    """The text that the classifier reads."""


def _one_path_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


#: A limit for a call says little of how long Python takes to start on busy cores.
LEAST_IMPORT_SECONDS: Final = 60.0


class FunctionLimits(Section):
    """What a function may take before its process is ended; classifiers read none of it."""

    timeout_seconds: Placement[PositiveFloat] = 600.0
    """Longest time for the completions of one part; a function that takes longer is ended, and what it hangs on is refused. The import may take as long, and at least a minute."""
    max_attempts: Placement[PositiveInt] = 2
    """How often a part is tried whose function ends its process or hangs, and each of its completions alone."""
    max_memory_gib: Placement[PositiveFloat | None] = None
    """Memory that the function's process may hold, in GiB, with the processes that it starts; without it there is no limit."""

    @property
    def import_seconds(self) -> float:
        """How long starting the process and importing the function may take: busy cores need seconds."""
        return max(self.timeout_seconds, LEAST_IMPORT_SECONDS)


class RewardConfig(ClassifierReading, FunctionLimits):
    """One scorer of completions: a Python function or a sequence classifier."""

    function: Resolved[str | None] = None
    """`package.module:name` of a function, called by name with lists of `prompts` and `completions`; it returns a list of numbers."""
    depends_on: Resolved[Annotated[tuple[LocalPath, ...], BeforeValidator(_one_path_or_many)]] = ()
    """Files and folders that the function reads: when one changes, its scores are made again."""
    classifier: Resolved[PathOrName | None] = None
    """A sequence-classification model: folder, URI or hub name."""
    implicit: Resolved[bool] = False
    """The run's own model: log-prob under `model` minus log-prob under the reference, in nats; `weight` is its beta."""
    weight: Resolved[Annotated[float, Field(allow_inf_nan=False)]] = 1.0
    """Factor in the weighted sum of several rewards."""
    name: Resolved[str | None] = None
    """Name in the scores table; without it the function's or the folder's name."""
    batch_size: Placement[PositiveInt] = 64
    """Completions in one forward pass."""
    workers: Placement[PositiveInt] = 1
    """Ray Data actors that score."""
    gpus_per_worker: Placement[GpuShare] = 1.0
    """Share of a GPU that an actor holds in Ray, where a classifier runs on CUDA."""

    @model_validator(mode="after")
    def _one_source(self) -> RewardConfig:
        if [self.function is None, self.classifier is None, not self.implicit].count(False) != 1:
            raise ValueError(
                "a reward takes exactly one of `function`, `classifier` and `implicit`: give one"
            )
        return self

    @model_validator(mode="after")
    def _functions_read_files(self) -> RewardConfig:
        if self.depends_on and self.function is None:
            raise ValueError(
                "`depends_on` is for a `function`: a model's own files are looked at anyway"
            )
        return self

    @model_validator(mode="after")
    def _functions_have_limits(self) -> RewardConfig:
        given = sorted(FunctionLimits.model_fields.keys() & self.model_fields_set)
        defaults = {name: FunctionLimits.model_fields[name].default for name in given}
        if self.function is None and defaults != {name: getattr(self, name) for name in given}:
            raise ValueError(f"`{'`, `'.join(given)}` is for a `function`: take it out")
        return self

    @property
    def scorer(self) -> str:
        """Name of this scorer in the scores table."""
        source = self.function or self.classifier or "implicit"
        return self.name or source.rstrip("/").rsplit("/", 1)[-1]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, dict | RewardConfig) else value


Rewards = Annotated[tuple[RewardConfig, ...], Field(min_length=1), BeforeValidator(_one_or_many)]


Builder = Literal["best_worst", "all_pairs", "first_two", "best_random"]


class PairsConfig(Section):
    """How the scores of a prompt's candidates become pairs."""

    builder: Builder = "best_worst"
    """Which candidates are paired."""
    min_margin: NonNegativeFloat = 0.0
    """A pair needs rewards that differ by more than this; at 0 only ties are dropped."""
    weighting: Literal["pair", "group"] = "pair"
    """Each pair weighs 1, or the pairs of a group weigh 1 together."""
    ranking_ties: Literal["drop", "by_candidate"] = "drop"
    """Equal rewards leave a group without a ranking, or the lower candidate number comes first; counted."""
    labels: Literal["argmax", "bradley_terry"] = "argmax"
    """The higher reward wins, or wins with probability sigmoid(difference / temperature)."""
    temperature: PositiveFloat = 1.0
    """Temperature of those probabilities, drawn from or kept as soft labels."""
    flip_rate: Fraction = 0.0
    """Share of labels (of rankings: whole ones) turned round, to study noise; 0.5 makes labels random."""


class PeopleConfig(Section):
    """People choose between two completions; `raydpo annotate` takes pairs out and votes in."""

    min_votes: PositiveInt = 1
    """A pair needs the votes of so many people; one with fewer is left out, and counted."""


class LabelingConfig(Section):
    """Rewards and the pairs built from them, or people's votes."""

    reward: Resolved[Annotated[tuple[RewardConfig, ...], BeforeValidator(_one_or_many)]] = ()
    """One scorer, or a list of them that are summed with their weights."""
    people: Resolved[PeopleConfig | None] = None
    """People label instead: `people: {}`. The run stops after sampling, until votes are imported."""
    pairs: Resolved[PairsConfig] = PairsConfig()
    """How the scores of a prompt's candidates become pairs."""

    @property
    def is_implicit(self) -> bool:
        """Whether the run's own model labels."""
        return any(reward.implicit for reward in self.reward)

    @model_validator(mode="after")
    def _by_rewards_or_by_people(self) -> LabelingConfig:
        if bool(self.reward) == (self.people is not None):
            raise ValueError(
                "either rewards label or people do: give `reward`, or `people: {}`, and not both"
            )
        if self.people is not None and self.pairs != PairsConfig():
            raise ValueError("`pairs` are built from rewards, and people label: leave it out")
        return self

    @model_validator(mode="after")
    def _implicit_stands_alone(self) -> LabelingConfig:
        if len(self.reward) > 1 and any(reward.implicit for reward in self.reward):
            raise ValueError("an `implicit` reward stands alone: take out the others")
        return self


class ReferenceConfig(Section):
    """Offline per-token log-probabilities of the frozen reference."""

    model: Resolved[Model | None] = None
    """The reference; without it the run's `model`."""
    workers: Placement[PositiveInt] = 1
    """Ray Data actors that score."""
    cpus_per_worker: Placement[PositiveFloat] = 1.0
    """Ray CPUs that an actor holds."""
    gpus_per_worker: Placement[GpuShare] = 1.0
    """Share of a GPU that an actor holds in Ray, on CUDA."""
    max_tokens_per_batch: Placement[PositiveInt] = 4096
    """Tokens of one forward pass, prompts counted once where shared, else padding too."""
    verify_groups: Placement[NonNegativeInt] = 8
    """Groups scored again before training and held against the table."""
    tolerance: Placement[PositiveFloat | None] = None
    """Largest difference of a per-token log-prob in that check, in nats; without it 1e-3 in float32 and 0.25 in bfloat16, which rounds with the shape of a batch."""


class EvaluationConfig(Section):
    """Policy against reference on held-out prompts and pairs."""

    prompts: Resolved[Prompts]
    """Held-out prompts; a plain path is read with the keys of the run's own `prompts`."""
    judge: Resolved[Rewards]
    """The scorer of the report; better another than the one that made the labels."""
    samples_per_prompt: PositiveInt = 4
    """Completions sampled for each prompt, from the reference and from the policy."""
    temperature: Temperature = 1.0
    """Softmax temperature of those samples. KL is that of the policy itself only at 1."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the preference groups kept out of training, for accuracy and margins."""
    report_samples: PositiveInt = 12
    """Prompts whose samples the report shows side by side."""

    @model_validator(mode="after")
    def _judges_are_others(self) -> EvaluationConfig:
        if any(judge.implicit for judge in self.judge):
            raise ValueError("a policy does not judge itself: give a `function` or a `classifier`")
        return self


class Config(Section):
    """One job."""

    name: Placement[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run; its directory is `<output>/<name>`."""
    output: Placement[Annotated[LocalPath, Field(validate_default=True)]] = "runs"
    """Folder or URI that holds the run directories."""
    seed: Resolved[NonNegativeInt] = 0
    """Seed of everything that is drawn."""
    rows_per_part: Resolved[PositiveInt] = 256
    """Prompts or groups in one part file, the unit of work and of resuming."""
    stream_stages: Placement[bool] = True
    """Sample, label and score under the reference part by part, none of them waiting for the whole
    table of the one before, where the cluster has room for all of them at once."""
    ray_address: Placement[str | None] = None
    """Address of a Ray cluster; without it RAY_ADDRESS, and else, or if it is `local`, a cluster on this machine."""
    max_quarantined_fraction: Placement[Fraction] = 0.01
    """A stage stops when it refuses a larger share of its input rows."""
    model: Model
    """The model that samples and that training starts from."""
    prompts: Prompts | None = None
    """Prompts to sample for."""
    sampling: SamplingConfig = SamplingConfig()
    """How candidates are sampled."""
    labeling: LabelingConfig | None = None
    """How candidates become preferences."""
    preferences: Preferences | None = None
    """Preference data that exists already, instead of prompts and labelling."""
    reference: ReferenceConfig = ReferenceConfig()
    """Offline reference log-probabilities."""
    training: TrainingConfig | None = None
    """The policy's training."""
    evaluation: EvaluationConfig | None = None
    """Policy against reference, and the report."""
    sft: SftConfig | None = None
    """Supervised fine-tuning, for `raydpo sft`."""
    online: OnlineConfig | None = None
    """Rounds, for `raydpo online`."""

    @model_validator(mode="before")
    @classmethod
    def _heldout_prompts_are_read_like_the_others(cls, values: Any) -> Any:
        evaluation, prompts = values.get("evaluation"), values.get("prompts")
        if not isinstance(evaluation, dict) or not isinstance(prompts, dict):
            return values
        path = evaluation.get("prompts")
        if not isinstance(path, str):
            return values
        like = {key: value for key, value in prompts.items() if key not in ("path", "limit")}
        return {**values, "evaluation": {**evaluation, "prompts": {**like, "path": path}}}

    @model_validator(mode="after")
    def _one_origin(self) -> Config:
        if self.preferences is not None and (self.prompts or self.labeling):
            raise ValueError(
                "`preferences` replaces `prompts` and `labeling`: give one or the other"
            )
        if self.prompts is None and self.preferences is None and self.sft is None:
            raise ValueError(
                "there is nothing to work on: give `prompts` (to sample and label), "
                "`preferences` (data that exists already) or `sft`"
            )
        return self
