"""Per-token log-probabilities: the one forward pass of policy and reference alike.

What comes in: a transformers causal language model and a micro-batch. What goes out:
log pi(token | prefix) in nats, float32, for the completion tokens only, and what else an
objective asks of the output layer (see `head.py`).

Shapes: R sequences, T tokens, N completion tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.errors import ModelError
from raydpo.training.batch import MicroBatch, build_micro_batch
from raydpo.training.groups import Group
from raydpo.training.head import (
    HeadRequest,
    OutputLayer,
    ReferenceHead,
    TokenOutputs,
    head_outputs,
)

__all__ = [
    "HeadRequest",
    "TokenLogps",
    "TokenOutputs",
    "check_forward",
    "token_logps",
    "token_outputs",
]


class TokenLogps(nn.Module):
    """A causal language model whose forward pass gives completion log-probabilities.

    A `reference` is a frozen model beside the policy, for `HeadRequest.reference_kl`. It is
    no submodule: neither optimizer, checkpoints nor gradient synchronization see it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        precision: str = "float32",
        reference: TokenLogps | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self._reference = (reference,)

    def forward(
        self, batch: MicroBatch, request: HeadRequest
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The fields of `TokenOutputs`: a plain tuple, which DDP and FSDP hook into."""
        reference = self._reference_head(batch) if request.reference_kl else None
        with _autocast(self.precision, batch.input_ids.device):
            hidden = self.hidden(batch)
            return head_outputs(self.output_layer, hidden, batch.targets, request, reference)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Last hidden states that predict the completion tokens: [N, H]."""
        decoder = self.model.base_model
        hidden = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[batch.predictors]

    @property
    def output_layer(self) -> OutputLayer:
        """From hidden states to logits."""
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has an output layer"
        return head

    @torch.no_grad()
    def _reference_head(self, batch: MicroBatch) -> ReferenceHead:
        (reference,) = self._reference
        assert reference is not None, "KL to the reference needs a reference model"
        reference.to(batch.input_ids.device)
        with _autocast(reference.precision, batch.input_ids.device):
            return ReferenceHead(reference.hidden(batch), reference.output_layer)


def token_outputs(module: nn.Module, batch: MicroBatch, request: HeadRequest) -> TokenOutputs:
    """Run a `TokenLogps` (or a wrapper of one) on a micro-batch."""
    return TokenOutputs(*module(batch, request))


def token_logps(module: nn.Module, batch: MicroBatch) -> Tensor:
    """Log-probs of the completion tokens alone: [N] float32."""
    return token_outputs(module, batch, HeadRequest()).logps


def check_forward(model: PreTrainedModel) -> None:
    """Hold this forward pass against the model's own logits on a few tokens.

    Some architectures scale or cap logits after the output layer; leaving that out would
    be silently wrong, so such a model is refused.

    Raises:
        ModelError: the two differ.
    """
    ids = torch.arange(1, 9).remainder(model.config.vocab_size).tolist()
    batch = build_micro_batch([Group("check", ids[:1], [ids[1:]], [], None)]).to(model.device)
    with torch.no_grad():
        own = model(input_ids=batch.input_ids, use_cache=False).logits.float().log_softmax(-1)
        expected = own[0, :-1].gather(-1, batch.targets[:, None]).squeeze(-1)
        got = token_logps(TokenLogps(model), batch)
    difference = (expected - got).abs().max().item()
    if not difference < 1e-4:
        raise ModelError(
            f"{type(model).__name__}: its logits differ from hidden states times output layer "
            f"by {difference:.2g} nats",
            "raydpo runs the output layer on completion positions only, so nothing may follow it",
            "use a model without logit scaling or soft-capping",
        )


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
