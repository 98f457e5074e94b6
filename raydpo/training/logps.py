"""Per-token log-probabilities: the one forward pass of policy and reference alike.

What comes in: a transformers causal language model and a micro-batch. What goes out:
log pi(token | prefix) in nats, float32, for the completion tokens only. The output layer
runs on the positions that predict completion tokens, in chunks that are computed again
in the backward pass, so that logits of a whole batch never exist.

Shapes: R sequences, T tokens, N completion tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from raydpo.errors import ModelError
from raydpo.training.batch import MicroBatch

#: Positions whose logits exist at one time.
CHUNK_POSITIONS = 1024


class TokenLogps(nn.Module):
    """A causal language model whose forward pass gives completion log-probabilities."""

    def __init__(self, model: PreTrainedModel, precision: str = "float32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities of `targets`.

        Args:
            input_ids: [R, T] int64, padded on the right.
            rows: [N] int64, sequence of each target.
            columns: [N] int64, position of the hidden state that predicts it.
            targets: [N] int64.

        Returns:
            [N] float32, nats.
        """
        with _autocast(self.precision, input_ids.device):
            decoder = self.model.base_model
            hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
            chosen = hidden[rows, columns]
            logps = [
                self._chunk(part, wanted)
                for part, wanted in zip(
                    chosen.split(CHUNK_POSITIONS), targets.split(CHUNK_POSITIONS), strict=True
                )
            ]
        return torch.cat(logps)

    def _chunk(self, hidden: Tensor, targets: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        assert head is not None, "a causal language model has an output layer"
        if not torch.is_grad_enabled():
            return _head_logps(head, hidden, targets)
        result = checkpoint(_head_logps, head, hidden, targets, use_reentrant=False)
        assert isinstance(result, Tensor)
        return result


def token_logps(module: nn.Module, batch: MicroBatch) -> Tensor:
    """Run a `TokenLogps` (or a wrapper of one) on a micro-batch: [N] float32."""
    return module(batch.input_ids, batch.rows, batch.columns, batch.targets)


def check_forward(model: PreTrainedModel) -> None:
    """Hold this forward pass against the model's own logits on a few tokens.

    Some architectures scale or cap logits after the output layer; leaving that out would
    be silently wrong, so such a model is refused.

    Raises:
        ModelError: the two differ.
    """
    ids = torch.arange(1, 9, device=model.device).remainder(model.config.vocab_size)[None]
    columns = torch.arange(ids.shape[1] - 1, device=model.device)
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        expected = own[0, columns, ids[0, 1:]]
        got = TokenLogps(model)(ids, torch.zeros_like(columns), columns, ids[0, 1:])
    difference = (expected - got).abs().max().item()
    if not difference < 1e-4:
        raise ModelError(
            f"{type(model).__name__}: its logits differ from hidden states times output layer "
            f"by {difference:.2g} nats",
            "raydpo runs the output layer on completion positions only, so nothing may follow it",
            "use a model without logit scaling or soft-capping",
        )


def _head_logps(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden).float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
