"""A reward model in the train loop: a decoder with a head of one number.

What comes in: a sequence-classification model of transformers and micro-batches. What goes
out: the reward of each completion, as the value of its last token, so that its sum over
tokens is the reward. It is read where `labeling` reads it: at the last token of the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.config import ModelConfig
from raydpo.errors import ModelError
from raydpo.tables import Row
from raydpo.training.batch import MicroBatch
from raydpo.training.logps import HeadRequest, TokenLogps, autocast


class TokenRewards(TokenLogps):
    """A decoder whose forward pass gives rewards, in the padded layout."""

    def forward(
        self, batch: MicroBatch, request: HeadRequest
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """[N] float32: r(x, y) at the last token of each completion, 0 at all others.

        Completions end with EOS (`ended_by_eos`): what predicts it is the last token of the text.
        """
        last = batch.sequence_lengths.cumsum(0) - 1  # [R]
        with autocast(self.precision, batch.input_ids.device):
            hidden = self.hidden(batch).index_select(0, last)  # [R, H]
            rewards = scalar_head_of(self.model)(hidden).squeeze(-1).float()
        values = torch.zeros(len(batch.targets), device=rewards.device)
        return values.index_copy(0, last, rewards), None, None, None


def reward_module(model: PreTrainedModel, settings: ModelConfig) -> TokenRewards:
    """The module for a model with a scalar head.

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
    """From hidden states [n, H] to rewards [n, 1].

    Raises:
        ModelError: it has another name than transformers gives it in decoders.
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
    """A group whose completions all end with EOS, those that were cut short too.

    Nothing reads the EOS: it makes the text's own last token one that predicts another.
    """
    completions = [
        list(ids) if ids and ids[-1] == eos_id else [*ids, eos_id] for ids in row["completions"]
    ]
    return {**row, "completions": completions}
