"""Train a reward model in the train loop: a decoder with a head of one number.

From a sequence-classification model of transformers and micro-batches, the module computes the
reward of each completion. The reward is the value of the last token. All other tokens have the
value 0, so the sum over tokens is the reward. `labeling` reads it at the same place, the last token
of the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.config.job import ModelConfig
from raydpo.core.errors import ModelError
from raydpo.core.tables import Row
from raydpo.training.batch import MicroBatch
from raydpo.training.logps import HeadRequest, TokenLogps, autocast


class TokenRewards(TokenLogps):
    """A decoder whose forward pass gives rewards, in the padded layout."""

    def forward(
        self, batch: MicroBatch, request: HeadRequest
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return r(x, y) at the last token of each completion, and 0 at all others: [N] float32.

        Completions end with EOS (`ended_by_eos`), so the text's last token is the one that predicts
        EOS.
        """
        last = batch.sequence_lengths.cumsum(0) - 1  # [R]
        with autocast(self.precision, batch.input_ids.device):
            hidden = self.hidden(batch).index_select(0, last)  # [R, H]
            rewards = scalar_head_of(self.model)(hidden).squeeze(-1).float()
        values = torch.zeros(len(batch.targets), device=rewards.device)
        return values.index_copy(0, last, rewards), None, None, None


def reward_module(model: PreTrainedModel, settings: ModelConfig) -> TokenRewards:
    """Build the module for a model with a scalar head.

    Raises:
        ModelError: the layout is `shared`, or the head cannot be found.
    """
    if settings.layout == "shared":
        raise ModelError(
            f"model.layout 'shared' with {type(model).__name__}",
            "a reward model is trained in the padded layout, as it is read in labeling",
            "set model.layout to 'auto' or 'padded'",
        )
    scalar_head_of(model)
    return TokenRewards(model, settings.precision)


def scalar_head_of(model: PreTrainedModel) -> nn.Module:
    """Return the head, which maps hidden states [n, H] to rewards [n, 1].

    Raises:
        ModelError: the head does not have the name that transformers gives it in decoders.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no `score` layer",
            "a reward model is a decoder whose head transformers calls `score`",
            "use a causal language model such as Llama, Qwen, Mistral, Gemma or GPT-2",
        )
    return head


def ended_by_eos(row: Row, eos_id: int) -> Row:
    """End all completions of a group with EOS, including those that were cut short.

    Nothing reads the EOS; with it, the text's own last token predicts another token.
    """
    completions = [
        list(ids) if ids and ids[-1] == eos_id else [*ids, eos_id] for ids in row["completions"]
    ]
    return {**row, "completions": completions}
