"""What is measured: shapes of models and data, and the contenders.

These frozen descriptions go to the worker processes as JSON and come back the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

#: Who is measured: our train step, TRL's trainer, and four ways to score a reference.
Kind = Literal["raydpo", "trl", "score_raydpo", "score_padded", "score_trl", "score_vllm"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class ModelShape:
    """A Llama with random weights.

    Attributes:
        tied: whether the output layer is the embeddings' transpose.
        logits_scaling: what the model divides its logits by, as Granite does; with any value
            the output layer is no longer one matrix product, so our fused one cannot run.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    logits_scaling: float | None = None


@dataclass(frozen=True)
class DataShape:
    """Preference groups with log-normal lengths.

    Attributes:
        prompt_tokens: median length of the prompts.
        completion_tokens: median length of the completions.
        sigma: standard deviation of the lengths' logarithm; 0 makes all lengths the median.
        completions: K; every group has all K (K - 1) / 2 pairs.
        groups_per_step: groups of one optimizer step.
        steps: steps until the data are used up.
        longest: no length is above this many times its median.
    """

    prompt_tokens: int
    completion_tokens: int
    sigma: float
    completions: int
    groups_per_step: int
    steps: int = 64
    longest: float = 3.0

    @property
    def pairs_per_step(self) -> int:
        """Pairs of one optimizer step."""
        return self.groups_per_step * self.completions * (self.completions - 1) // 2


@dataclass(frozen=True)
class Scenario:
    """One thing to measure: the same model and data for every contender.

    Attributes:
        name: of the row in the table.
        model: random weights, from `seed`.
        data: random tokens, from `seed`.
        precision: `bfloat16` (autocast over float32 parameters) or `float32`.
        device: `cpu` or `cuda`.
        seed: of weights, tokens, lengths and the order of groups.
    """

    name: str
    model: ModelShape
    data: DataShape
    precision: Precision
    device: str
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Scenario:
        """The inverse of `as_json`."""
        shapes: dict[str, Any] = {
            "model": ModelShape(**values["model"]),
            "data": DataShape(**values["data"]),
        }
        return Scenario(**{**values, **shapes})


@dataclass(frozen=True)
class Contender:
    """Somebody who is measured, in a process of its own.

    Attributes:
        name: of the column in the table.
        kind: what it runs.
        says: what a reader must know of it.
        malloc: whether its process gets our workers' variables (`raydpo/core/environment.py`).
        compile: whether decoder blocks are compiled (ours).
        attention: the model's attention implementation; None for what it takes by itself.
        layout: `shared` computes a prompt once (ours), `padded` once for each completion.
        max_tokens: flat tokens of one forward pass (ours); None for all of a step.
        batch_pairs: pairs of one forward pass (TRL); None for all of a step.
        gradient_checkpointing: recompute activations (ours and TRL, whose default it is).
        lora_rank: train an adapter of this rank on every linear layer (ours); None trains all.
        compaction: run TRL's output layer on completion positions only, as it does on CUDA.
        batch_sequences: sequences of one forward pass (padded scoring).
        sort_by_length: put sequences of like length together (padded scoring).
    """

    name: str
    kind: Kind
    says: str
    malloc: bool = True
    compile: bool = False
    attention: str | None = None
    layout: str = "auto"
    max_tokens: int | None = None
    batch_pairs: int | None = None
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    compaction: bool = False
    batch_sequences: int = 16
    sort_by_length: bool = False

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


OURS = Contender("raydpo", "raydpo", "the real train loop on preference groups")
OURS_PADDED = replace(
    OURS,
    name="raydpo_padded",
    says="the same without the shared layout: each completion has its own prompt, padded",
    layout="padded",
)
OURS_MASK = replace(
    OURS,
    name="raydpo_mask",
    says="the shared layout with one explicit mask over all tokens, the tests' oracle",
    attention="mask",
)
OURS_MALLOC = replace(
    OURS, name="raydpo_malloc", says="with glibc's malloc as it comes", malloc=False
)
OURS_COMPILED = replace(
    OURS,
    name="raydpo_compiled",
    says="with decoder blocks by torch.compile, which takes the first step a minute",
    compile=True,
)
OURS_FLEX = replace(
    OURS,
    name="raydpo_flex",
    says="the same with FlexAttention in place of the device's default",
    attention="flex",
)
TRL_STOCK = Contender(
    "trl_stock",
    "trl",
    "DPOTrainer as it comes: batch 8, activations recomputed, glibc's malloc",
    malloc=False,
    batch_pairs=8,
    gradient_checkpointing=True,
)
TRL_TUNED = Contender(
    "trl_tuned",
    "trl",
    "batch 2 with accumulation, activations kept, malloc tuned as ours",
    batch_pairs=2,
)
TRL_COMPACT = replace(
    TRL_TUNED,
    name="trl_compact",
    says="as trl_tuned, and the output layer on completion positions only, which TRL does on CUDA",
    compaction=True,
)
#: The columns of the table, ours first.
TRAINERS = (OURS, TRL_STOCK, TRL_TUNED, TRL_COMPACT)

SCORE_OURS = Contender("score_raydpo", "score_raydpo", "the reference stage's scorer")
SCORE_PADDED = Contender(
    "score_padded",
    "score_padded",
    "transformers' forward on right-padded batches of 16 sequences, as they come; glibc's malloc",
    malloc=False,
)
SCORE_SORTED = replace(
    SCORE_PADDED,
    name="score_padded_sorted",
    says="the same, with sequences of like length together, and malloc tuned as ours",
    sort_by_length=True,
    malloc=True,
)
SCORE_TRL = Contender(
    "score_trl",
    "score_trl",
    "DPOTrainer.compute_ref_log_probs as it comes, on batches of 8 pairs",
    malloc=False,
    batch_pairs=8,
)
SCORE_VLLM = Contender("score_vllm", "score_vllm", "vLLM's prompt_logprobs", malloc=False)
