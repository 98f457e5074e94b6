"""Per-token log-probabilities: the one forward pass that policy and reference share.

From a transformers causal language model and a micro-batch, it computes log pi(token | prefix) in
nats, float32, only for the completion tokens, and whatever else an objective requests of the
output layer (see `head.py`).

Shapes: R sequences, T tokens, N completion tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.core.errors import ModelError
from raydpo.models.context import Context, model_context
from raydpo.training.attention.backends import IMPLEMENTATIONS
from raydpo.training.attention.interface import LAYOUT_ARGUMENT, set_attention
from raydpo.training.batch import MicroBatch, build_micro_batch, split_by_sequence
from raydpo.training.groups import Group
from raydpo.training.head import (
    HeadRequest,
    ReferenceHead,
    TokenOutputs,
    head_outputs,
)

__all__ = [
    "HeadRequest",
    "TokenLogps",
    "TokenOutputs",
    "completion_logps",
    "token_logps",
    "token_outputs",
]

#: Keys of a model's config that change its logits (Cohere, Granite, Gemma 2), in the order of use.
_ADJUSTMENTS: Final[dict[str, Callable[[Tensor, float], Tensor]]] = {
    "logit_scale": lambda logits, scale: logits * scale,
    "logits_scaling": lambda logits, divisor: logits / divisor,
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),
}


class TokenLogps(nn.Module):
    """A causal language model whose forward pass gives completion log-probabilities.

    With `attention`, the name of a backend (see `attention/backends.py`), it takes micro-batches in
    the shared layout. Without it, it takes the padded layout and uses the model's own attention.

    A `reference` is a frozen model beside the policy, for `HeadRequest.reference_kl`. It is not a
    submodule: the optimizer, checkpoints and gradient synchronization do not see it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        precision: str = "float32",
        attention: str | None = None,
        reference: TokenLogps | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.shared = attention is not None
        self._reference = (reference,)
        context = model_context(model.config.to_dict())
        self._batch_context = context if context and context.depends_on_batch else None
        if attention is not None:
            set_attention(model, IMPLEMENTATIONS[attention])

    def put_beside(self, reference: TokenLogps) -> None:
        """Attach a frozen reference to this policy.

        Raises:
            ModelError: the two take different layouts.
        """
        if reference.shared != self.shared:
            raise ModelError(
                "policy and reference lay out micro-batches differently: one of them cannot "
                "share prompts",
                "this objective runs both on the same micro-batches",
                "set model.layout and reference.model.layout to `padded`",
            )
        self._reference = (reference.requires_grad_(False).eval(),)

    def forward(
        self, batch: MicroBatch, request: HeadRequest
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return the fields of `TokenOutputs` as a plain tuple, which DDP and FSDP hook into."""
        reference = self._reference_head(batch) if request.reference_kl else None
        with autocast(self.precision, batch.input_ids.device):
            hidden = self.hidden(batch)
            return head_outputs(
                self.output_layer, hidden, batch.targets, request, reference, self.output_weight()
            )

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Return the last hidden states that predict the completion tokens: [N, H].

        Raises:
            ModelError: a sequence of the batch would change the log-probs of others.
        """
        if self._batch_context is not None:
            refuse_longer(self.model, batch.longest, self._batch_context)
        arguments: dict[str, Any] = {}
        if batch.layout is not None:
            positions = batch.layout.position_ids
            arguments = {"position_ids": positions, LAYOUT_ARGUMENT: batch.layout}
        decoder = decoder_of(self.model)
        hidden = decoder(input_ids=batch.input_ids, use_cache=False, **arguments).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, batch.predictors)

    def output_layer(self, hidden: Tensor) -> Tensor:
        """Compute logits [n, V] from hidden states [n, H], scaled and capped as the model does."""
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has an output layer"
        return adjusted_logits(head(hidden), self.model.config.get_text_config())

    def output_weight(self) -> Tensor | None:
        """Return the output weight [V, H] if the layer is a product with it and nothing else."""
        head = self.model.get_output_embeddings()
        config = self.model.config.get_text_config()
        adjusts = any(getattr(config, name, None) is not None for name in _ADJUSTMENTS)
        if adjusts or type(head) is not nn.Linear or "bias" in dict(head.named_parameters()):
            return None
        return head.weight

    @torch.no_grad()
    def _reference_head(self, batch: MicroBatch) -> ReferenceHead:
        (reference,) = self._reference
        assert reference is not None, "KL to the reference needs a reference model"
        reference.to(batch.input_ids.device)
        with autocast(reference.precision, batch.input_ids.device):
            return ReferenceHead(reference.hidden(batch), reference.output_layer)


def token_outputs(module: nn.Module, batch: MicroBatch, request: HeadRequest) -> TokenOutputs:
    """Run a `TokenLogps` (or a wrapper of one) on a micro-batch."""
    return TokenOutputs(*module(batch, request))


def token_logps(module: nn.Module, batch: MicroBatch) -> Tensor:
    """Return only the log-probs of the completion tokens: [N] float32."""
    return token_outputs(module, batch, HeadRequest()).logps


def completion_logps(
    module: nn.Module, groups: list[Group], shared: bool, device: torch.device
) -> list[list[list[float]]]:
    """Compute log-probs of completions in one forward pass, by group, completion and token."""
    batch = build_micro_batch(groups, shared).to(device)
    sequences = iter(split_by_sequence(token_logps(module, batch).tolist(), batch))
    return [[next(sequences) for _ in group.completions] for group in groups]


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the model without its output layer.

    Raises:
        ModelError: the decoder cannot be told apart from the rest of the model.
    """
    candidates: list[Any] = [
        model.get_decoder(),
        getattr(model, "model", None),
        model.base_model,  # for models of sequence classification
    ]
    for decoder in candidates:
        if isinstance(decoder, nn.Module) and decoder is not model:
            return decoder
    raise ModelError(
        f"{type(model).__name__} has no decoder apart from its output layer",
        "raydpo runs the output layer on completion positions only",
        "use a causal language model whose decoder transformers' `get_decoder` gives",
    )


def refuse_longer(model: PreTrainedModel, tokens: int, context: Context) -> None:
    """Refuse a sequence whose length sets the rotary positions of a whole batch.

    Raises:
        ModelError: a sequence has more tokens than the context.
    """
    if tokens > context.tokens:
        raise ModelError(
            f"{type(model).__name__}: a sequence of {tokens} tokens",
            f"a log-prob depends on its own sequence alone ({context.because})",
            f"give sequences of at most {context.tokens} tokens, or use another rope_type",
        )


def adjusted_logits(logits: Tensor, config: Any) -> Tensor:
    """Adjust the output layer's products as the model's architecture demands."""
    for name, adjust in _ADJUSTMENTS.items():
        if (value := getattr(config, name, None)) is not None:
            logits = adjust(logits, value)
    return logits


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Run matrix products in bfloat16 if that is the precision; parameters stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
