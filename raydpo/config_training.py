"""The configuration's sections on training: what preferences and SFT share, and each alone.

What comes in: values of the sections `training` and `sft`. What goes out: frozen models.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from raydpo.config_base import (
    Fraction,
    GpuShare,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    SourceFormat,
)
from raydpo.config_content import Placement, Resolved
from raydpo.config_objectives import DpoObjective, Objective
from raydpo.config_paths import PathOrName


class LoraSettings(Section):
    """A low-rank adapter (arXiv:2106.09685) instead of the whole model's training."""

    rank: PositiveInt = 16
    """Rank of the update of each weight matrix."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Must be 0: the reference has none, and a resumed run must equal an uninterrupted one."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that are adapted, such as q_proj; `all-linear`: all but the output layer."""

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.dropout != 0:
            raise ValueError(
                f"dropout {self.dropout:g} must be 0: step 0 has to show the reference's "
                "log-probabilities, and no random numbers are drawn in training"
            )
        return self


class TrainerConfig(Section):
    """What training on preferences and supervised fine-tuning have in common."""

    strategy: Placement[Literal["ddp", "fsdp"]] = "ddp"
    """DDP replicates the parameters, FSDP2 shards them."""
    num_workers: Placement[PositiveInt | tuple[PositiveInt, PositiveInt]] = 1
    """Ray Train workers; `[least, most]`: as many as the cluster has room for, also later on."""
    resize_every_seconds: Placement[PositiveFloat] = 60.0
    """With a range of workers: how often it is looked whether there is room for more or fewer."""
    replicas: Placement[PositiveInt] = 1
    """Copies of the sharded model, each over num_workers / replicas workers (HSDP); FSDP2 only."""
    reshard_after_forward: Placement[bool] = True
    """FSDP2 frees a block's parameters after its forward pass; false: less traffic, more memory."""
    cpu_offload: Placement[bool] = False
    """Keep FSDP2's shards and the optimizer in CPU memory; for CUDA workers only."""
    compile: Placement[bool] = False
    """Compile the decoder blocks by torch.compile, once for all lengths; worth it on long runs."""
    lora: LoraSettings | None = None
    """Train a low-rank adapter only; it is saved beside the merged model."""
    device: Placement[Literal["auto", "cpu", "cuda"]] = "auto"
    """`auto`: CUDA with NCCL where the Ray cluster has GPUs, else CPU with gloo."""
    cpus_per_worker: Placement[PositiveFloat] = 1.0
    """Ray CPUs that a worker holds."""
    gpus_per_worker: Placement[GpuShare] = 1.0
    """Share of a GPU that a worker holds in Ray, on CUDA; NCCL wants a GPU for each."""
    max_tokens_per_micro_batch: Placement[PositiveInt] = 4096
    """Tokens of one forward and backward pass, prompts counted once where shared, else padding too; bounds memory, changes no result."""
    epochs: PositiveInt = 1
    """Passes over the data."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimizer steps."""
    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate of AdamW."""
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's moment decays."""
    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """Learning rate after warm-up; cosine and linear end at 0."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the global gradient norm to this; null clips nothing."""
    activation_checkpointing: Placement[bool] = False
    """Recompute activations in the backward pass, to save memory."""
    checkpoint_every_steps: Placement[PositiveInt] = 100
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: Placement[PositiveInt] = 2
    """The newest checkpoints that are kept, or, with `keep_best_by`, the best and the newest one."""
    keep_best_by: Placement[Literal["loss", "rewards/accuracies", "rewards/margins"] | None] = None
    """The metric of the step by which checkpoints are kept; the loss is best where it is lowest."""
    background_checkpoints: Placement[bool] = False
    """Write a checkpoint while the next step is computed."""
    max_failures: Placement[NonNegativeInt] = 2
    """How often Ray Train starts the workers again after one died."""
    log_every_steps: Placement[PositiveInt] = 1
    """Steps between lines of metrics."""
    trackers: Placement[tuple[Literal["tensorboard", "wandb", "mlflow"], ...]] = ("tensorboard",)
    """Where metrics go, beside the console and metrics.jsonl."""

    @property
    def fewest_workers(self) -> int:
        """The least number of workers to train with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers to train with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

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
    """The loss; each has options of its own (`config_objectives.py`)."""
    global_batch_groups: PositiveInt = 64
    """Preference groups of one optimizer step, over all workers."""
    step_zero_tolerance: Placement[PositiveFloat | None] = None
    """Largest logratio of a token that step 0 may show, in nats; more stops the run. Without it 1e-3 in float32 and 0.25 in bfloat16, which rounds with the shape of a batch."""

    @model_validator(mode="after")
    def _adapters_have_no_new_head(self) -> Self:
        if self.lora is not None and self.objective.scalar_head:
            raise ValueError(
                "lora with objective `reward_model`: its head is new, and an adapter would not "
                "train it; remove `lora`"
            )
        return self


class SftTrainerConfig(TrainerConfig):
    """How supervised fine-tuning trains; reading its data depends on none of it."""

    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate of AdamW."""
    global_batch_sequences: PositiveInt = 32
    """Examples of one optimizer step, over all workers."""


class SftConfig(SftTrainerConfig):
    """Supervised fine-tuning: the stage that makes pi_ref."""

    data: Resolved[PathOrName]
    """A file, a glob, a folder, a URI, or the name of a `datasets` dataset."""
    format: Resolved[SourceFormat] = "auto"
    """How to read it; `auto` goes by the file name's ending."""
    split: str = "train"
    """The split: of a `datasets` dataset, or of files whose names say theirs, as train-* and test-* do."""
    loss_on: Literal["all", "completion", "assistant"] = "completion"
    """Next-token loss on the full text (column `text`), on the completion only (of a conversation the last turn), or on every assistant turn, each an example after the turns before it."""
    max_sequence_tokens: PositiveInt = 1024
    """Longest example, in tokens; full text is cut into pieces of this length."""
    too_long: Literal["quarantine", "keep_start", "error"] = "quarantine"
    """What happens to a longer prompt-completion example."""
    limit: PositiveInt | None = None
    """Read only so many rows of the source."""

    @model_validator(mode="after")
    def _metric_exists(self) -> Self:
        if self.keep_best_by not in (None, "loss"):
            raise ValueError(f"keep_best_by {self.keep_best_by!r}: fine-tuning has a loss only")
        return self
