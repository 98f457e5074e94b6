"""The sections `training` and `sft`: what they share, and what each has alone."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydpo.config.base import (
    Fraction,
    GpuShare,
    NonNegativeFloat,
    NonNegativeInt,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Section,
    SourceFormat,
)
from raydpo.config.content import Placement, Resolved
from raydpo.config.objectives import DpoObjective, Objective, single_objectives


class LoraSettings(Section):
    """A low-rank adapter (arXiv:2106.09685), trained instead of the whole model."""

    rank: PositiveInt = 16
    """Rank of the update of each weight matrix."""
    alpha: PositiveFloat = 32.0
    """Numerator of the factor alpha / rank that scales the update."""
    dropout: float = 0.0
    """Must be 0: the reference has no dropout, and a resumed run must equal an uninterrupted one."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that are adapted, such as q_proj; `all-linear` adapts all but the output layer."""

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.dropout != 0:
            raise ValueError(
                f"dropout {self.dropout:g} must be 0: step 0 has to show the reference's "
                "log-probabilities, and no random numbers are drawn in training"
            )
        return self


class EarlyStoppingConfig(Section):
    """Ends a training that no longer improves on held-out data, and exports its best step."""

    metric: Literal["loss", "rewards/accuracies", "rewards/margins"] = "loss"
    """The held-out metric that decides; for the loss, lower is better."""
    patience: PositiveInt | None = 3
    """Evaluations in a row without an improvement after which training stops; null trains to the end and still exports the best step."""
    min_delta: NonNegativeFloat = 0.0
    """Smallest change of the metric that counts as an improvement, in the metric's own unit."""

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the metric is the better one."""
        return self.metric == "loss"


class TrainerConfig(Section):
    """What training on preferences and supervised fine-tuning have in common."""

    strategy: Placement[Literal["ddp", "fsdp"]] = "ddp"
    """DDP replicates the parameters, FSDP2 shards them."""
    num_workers: Placement[PositiveInt | tuple[PositiveInt, PositiveInt]] = 1
    """Number of Ray Train workers; with `[least, most]`, as many as the cluster has room for at any time."""
    resize_every_seconds: Placement[PositiveFloat] = 60.0
    """With a range of workers, seconds between checks whether the cluster has room for more or fewer."""
    replicas: Placement[PositiveInt] = 1
    """Copies of the sharded model, each spread over num_workers / replicas workers (HSDP); for FSDP2 only."""
    reshard_after_forward: Placement[bool] = True
    """Whether FSDP2 frees a block's parameters after its forward pass; false saves communication and costs memory."""
    cpu_offload: Placement[bool] = False
    """Whether FSDP2's shards and the optimizer stay in CPU memory; for CUDA workers only."""
    compile: Placement[bool] = False
    """Whether torch.compile compiles the decoder blocks, once for all lengths; this pays off on long runs."""
    lora: LoraSettings | None = None
    """A low-rank adapter that is trained instead of all weights, and saved beside the merged model."""
    device: Placement[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where workers run; `auto` chooses CUDA with NCCL if the Ray cluster has GPUs, otherwise CPU with gloo."""
    cpus_per_worker: Placement[PositiveFloat] = 1.0
    """Number of Ray CPUs that a worker holds."""
    gpus_per_worker: Placement[GpuShare] = 1.0
    """Share of a GPU that a worker on CUDA holds in Ray; NCCL needs one GPU per worker."""
    max_tokens_per_micro_batch: Placement[PositiveInt] = 4096
    """Maximum number of tokens in one forward and backward pass. Shared prompts count once; otherwise padding counts too. It limits memory and changes no result."""
    epochs: PositiveInt = 1
    """Number of passes over the data."""
    max_steps: PositiveInt | None = None
    """Maximum number of optimizer steps."""
    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate of AdamW."""
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """Schedule of the learning rate after warm-up; cosine and linear end at 0."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Maximum global gradient norm, to which gradients are clipped; null disables clipping."""
    activation_checkpointing: Placement[bool] = False
    """Whether the backward pass recomputes activations, which saves memory."""
    checkpoint_every_steps: Placement[PositiveInt] = 100
    """Steps between checkpoints; training always writes one at the end."""
    keep_checkpoints: Placement[PositiveInt] = 2
    """Number of the newest checkpoints to keep; with `keep_best_by` or `early_stopping`, the best and the newest one stay."""
    keep_best_by: Placement[Literal["loss", "rewards/accuracies", "rewards/margins"] | None] = None
    """The metric that decides which checkpoints are kept; for the loss, lower is better."""
    background_checkpoints: Placement[bool] = False
    """Whether workers write a checkpoint while they compute the next step."""
    max_failures: Placement[NonNegativeInt] = 2
    """How many times Ray Train restarts the workers after one died."""
    answer_within_seconds: Placement[PositiveFloat] = 300.0
    """Seconds without a sign of life after which a worker is ended. This counts as its death: all workers then resume from the last checkpoint."""
    progress_within_seconds: Placement[PositiveFloat] = 1800.0
    """Seconds without progress, such as in a collective that never ends, after which a live worker writes the stacks of its threads into the run and ends. All workers then resume likewise. Collectives of NCCL and gloo end a minute later."""
    heldout_fraction: Resolved[Annotated[float, Field(ge=0, lt=1)] | None] = None
    """Share of the data that is kept out of training; raydpo measures loss, accuracy, margins and log-probs on it before and after. Without it, `evaluation.heldout_fraction` says what training on preferences leaves out."""
    evaluate_every_steps: Resolved[PositiveInt | None] = None
    """Steps between two such measurements during training; given alone, it also adds those before and after."""
    early_stopping: Resolved[EarlyStoppingConfig | None] = None
    """When training stops before its last step; with this section, raydpo exports the best measured step instead of the last one."""
    log_every_steps: Placement[PositiveInt] = 1
    """Steps between logged lines of metrics."""
    trackers: Placement[tuple[Literal["tensorboard", "wandb", "mlflow"], ...]] = ("tensorboard",)
    """Trackers that receive the metrics, in addition to the console and metrics.jsonl."""

    @property
    def fewest_workers(self) -> int:
        """The minimum number of workers to train with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The maximum number of workers to train with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def evaluates_heldout(self) -> bool:
        """Whether the training is measured on held-out data."""
        return bool(self.heldout_fraction) or self.evaluate_every_steps is not None

    @model_validator(mode="after")
    def _best_step_is_known(self) -> Self:
        if self.early_stopping is None:
            return self
        if self.evaluate_every_steps is None:
            raise ValueError(
                "early_stopping compares measurements on held-out data: set evaluate_every_steps"
            )
        if self.keep_best_by is not None:
            raise ValueError(
                "early_stopping keeps the checkpoint that is best on held-out data, and "
                "keep_best_by goes by batches of the training: remove keep_best_by"
            )
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"num_workers {self.num_workers}: give the least number first")
        if self.strategy != "fsdp":
            for name in ("replicas", "cpu_offload", "reshard_after_forward"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} needs `strategy: fsdp`: DDP copies the whole model")
        if self.replicas > 1 and not isinstance(self.num_workers, int):
            raise ValueError("replicas needs one number of workers: a range may not divide")
        if self.most_workers % self.replicas:
            raise ValueError(
                f"replicas {self.replicas} must divide num_workers {self.num_workers}: each copy "
                "is sharded over equally many workers"
            )
        return self


class TrainingConfig(TrainerConfig):
    """The policy's training on preference groups."""

    objective: Objective = DpoObjective()
    """The loss: a name, or a section with the name and the options of that loss."""
    global_batch_groups: PositiveInt = 64
    """Number of preference groups in one optimizer step, over all workers."""
    step_zero_tolerance: Placement[PositiveFloat | None] = None
    """Largest logratio of a token, in nats, that step 0 may show; a larger one stops the run. Without it, 1e-3 in float32 and 0.25 in bfloat16, which rounds depending on the shape of a batch."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        samples = any(one.unit == "samples" for one in single_objectives(self.objective))
        if samples and self.keep_best_by not in (None, "loss"):
            raise ValueError(
                f"keep_best_by {self.keep_best_by!r}: policy_gradient has no pairs to measure it on"
            )
        unpaired = any(one.unit == "completions" for one in single_objectives(self.objective))
        metric = self.early_stopping.metric if self.early_stopping else "loss"
        if (samples and metric != "loss") or (unpaired and metric == "rewards/accuracies"):
            raise ValueError(
                f"early_stopping.metric {metric!r}: this objective has no pairs to measure it on; "
                "set it to `loss`"
            )
        return self


class SftTrainerConfig(TrainerConfig):
    """How supervised fine-tuning trains; reading its data depends on none of these fields."""

    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate of AdamW."""
    global_batch_sequences: PositiveInt = 32
    """Number of examples in one optimizer step, over all workers."""


class SftConfig(SftTrainerConfig):
    """Supervised fine-tuning, the stage that makes pi_ref."""

    data: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split of a `datasets` dataset, or of files whose names contain it, such as train-* and test-*."""
    loss_on: Literal["all", "completion", "assistant"] = "completion"
    """Which tokens the next-token loss covers: the full text (column `text`); the completion only (the last turn of a conversation); or every assistant turn, as one example each after the turns before it."""
    max_sequence_tokens: PositiveInt = 1024
    """Maximum example length in tokens; full text is cut into pieces of this length."""
    too_long: Literal["quarantine", "keep_start", "error"] = "quarantine"
    """What happens to a longer prompt-completion example."""
    limit: PositiveInt | None = None
    """Maximum number of rows that raydpo reads from the source."""

    @model_validator(mode="after")
    def _metric_exists(self) -> Self:
        if self.keep_best_by not in (None, "loss"):
            raise ValueError(f"keep_best_by {self.keep_best_by!r}: fine-tuning has only a loss")
        stopping = self.early_stopping
        if stopping is not None and stopping.metric != "loss":
            raise ValueError(
                f"early_stopping.metric {stopping.metric!r}: fine-tuning has only a loss"
            )
        return self
