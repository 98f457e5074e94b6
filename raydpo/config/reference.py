"""The reference model, and how raydpo computes its log-probs."""

from __future__ import annotations

from raydpo.config.base import GpuShare, Model, NonNegativeInt, PositiveFloat, PositiveInt, Section
from raydpo.config.content import Placement, Resolved


class ReferenceConfig(Section):
    """Offline per-token log-probabilities of the frozen reference."""

    model: Resolved[Model | None] = None
    """The reference model; without it the run's `model`."""
    workers: Placement[PositiveInt] = 1
    """Number of Ray Data actors that score."""
    cpus_per_worker: Placement[PositiveFloat] = 1.0
    """Number of Ray CPUs that an actor holds."""
    gpus_per_worker: Placement[GpuShare] = 1.0
    """Share of a GPU that an actor on CUDA holds in Ray."""
    answer_within_seconds: Placement[PositiveFloat] = 300.0
    """Seconds without a sign of life after which a worker is ended and its part begins again."""
    max_tokens_per_batch: Placement[PositiveInt] = 4096
    """Maximum number of tokens in one forward pass. Shared prompts count once; otherwise padding counts too."""
    verify_groups: Placement[NonNegativeInt] = 8
    """Number of groups that raydpo scores again before training and compares with the table."""
    tolerance: Placement[PositiveFloat | None] = None
    """Largest difference of a per-token log-prob in that check, in nats. Without it, 1e-3 in float32 and 0.25 in bfloat16, which rounds depending on the shape of a batch."""
