"""What the checks against peers share: a tiny policy and reference, data, and our log-probs.

From the very token ids of a peer's batch, it computes sums of our own log-probabilities over its
completions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, token_logps

PROMPTS = ["the film was", "a story", "we", "the acting is really", "I hated the plot and"]
CHOSEN = [" great and funny", " good", " loved it", " great", " enjoyed the slow end"]
REJECTED = [" awful", " very sad and very boring", " hated it and the end", " bad but fast", " sad"]


@dataclass(frozen=True)
class Sequences:
    """Sums over the completions of some sequences.

    Attributes:
        logps: [R] float32, nats.
        lengths: [R] int64, completion tokens.
        prompt_and_completion_logps: [R] float32: of all tokens but the first.
        full_lengths: [R] int64: all tokens but the first.
    """

    logps: Tensor
    lengths: Tensor
    prompt_and_completion_logps: Tensor
    full_lengths: Tensor


def load(folder: Path) -> tuple[PreTrainedModel, object]:
    """A model and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def sums(model: PreTrainedModel, input_ids: Tensor, completion_mask: Tensor) -> Sequences:
    """Our log-probabilities of a padded batch.

    Args:
        model: scored by `TokenLogps`, as in training.
        input_ids: [R, T].
        completion_mask: [R, T], not 0 at completion tokens; prompts stand before, padding is
            anywhere else.
    """
    module = TokenLogps(model)
    rows = split(input_ids, completion_mask)
    logps, lengths = _score(module, rows)
    whole = [(prompt[:1], prompt[1:] + completion) for prompt, completion in rows]
    return Sequences(logps, lengths, *_score(module, whole))


def split(input_ids: Tensor, completion_mask: Tensor) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of each row."""
    return [
        (ids[: int(mask.argmax())].tolist(), ids[mask.bool()].tolist())
        for ids, mask in zip(input_ids, (completion_mask != 0).long(), strict=True)
    ]


def _score(module: TokenLogps, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    groups = [Group(str(i), *row_of(row), [], None) for i, row in enumerate(rows)]
    batch = build_micro_batch(groups)
    return batch.sequence_sums(token_logps(module, batch)), batch.sequence_lengths


def row_of(row: tuple[list[int], list[int]]) -> tuple[list[int], list[list[int]]]:
    """Prompt, and the only completion."""
    return row[0], [row[1]]


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen come first, then rejected."""
    chosen, rejected = values.chunk(2)
    return chosen, rejected


def close(got: Tensor | float, wanted: Tensor | float) -> None:
    """Equal but for float32 rounding of sums of log-probabilities."""
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        rtol=2e-5,
        atol=2e-5,
    )


def token_logratios(
    policy: PreTrainedModel, reference: PreTrainedModel, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logratios of completion tokens and their sequences: [N], [N]."""
    rows = split(batch["input_ids"], batch["completion_mask"])
    micro = build_micro_batch([Group(str(i), *row_of(row), [], None) for i, row in enumerate(rows)])
    ours = [token_logps(TokenLogps(model), micro) for model in (policy, reference)]
    return ours[0] - ours[1], micro.sequences


def concatenated(policy: PreTrainedModel, batch: dict[str, Tensor]) -> Sequences:
    """Sums over a batch that has `chosen_*` and `rejected_*` apart: chosen, then rejected."""
    parts = [
        sums(policy, batch[f"{side}_input_ids"], batch[f"{side}_labels"] != -100)
        for side in ("chosen", "rejected")
    ]
    return Sequences(
        *(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0]))
    )
