"""Compute a classifier's logits for several texts at once, equal to those of each text alone.

For a decoder, the module reads the logits at the last token of each text, found by its length.
transformers looks for the padding token's id instead, which may differ from the tokenizer's, or
occur in a text.

Shapes: B texts, L tokens of the longest text, H hidden, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: Largest difference of a logit from that of the text alone, relative to 1 + its size.
_TOLERANCE: Final = 1e-3


def without_padding_id(model: PreTrainedModel, pad_id: int) -> None:
    """Make the model's own forward pass independent of the padding token.

    Args:
        model: modified in place; a decoder without a padding id reads a single text's last token.
        pad_id: the id for other models that name no padding token.
    """
    config: Any = model.config.get_text_config()
    if is_decoder(model):
        config.pad_token_id = None
    elif config.pad_token_id is None:
        config.pad_token_id = pad_id


def is_decoder(model: PreTrainedModel) -> bool:
    """Return whether the model is a decoder with transformers' layer `score` on top."""
    from torch import nn

    head: Any = getattr(model, "score", None)
    return isinstance(head, nn.Module) and not model.config.is_encoder_decoder


def batch_logits(model: PreTrainedModel, token_ids: list[list[int]], pad_id: int) -> torch.Tensor:
    """Compute logits of texts padded on the right: [B, C]."""
    import torch

    lengths = torch.tensor([len(ids) for ids in token_ids], device=model.device)
    longest = int(lengths.max())
    ids_BL = [ids + [pad_id] * (longest - len(ids)) for ids in token_ids]
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(ids_BL, device=model.device),
        "attention_mask": (torch.arange(longest, device=model.device) < lengths[:, None]).long(),
    }
    if not is_decoder(model):
        return model(**inputs).logits
    hidden_BLH = model.base_model(**inputs).last_hidden_state
    last_BH = hidden_BLH[torch.arange(len(token_ids), device=model.device), lengths - 1]
    head: Any = model.score
    return head(last_BH)


def single_logits(model: PreTrainedModel, token_ids: list[list[int]]) -> torch.Tensor:
    """Compute logits with the model's own forward pass, text by text, without padding: [B, C]."""
    import torch

    rows = [model(input_ids=torch.tensor([ids], device=model.device)).logits for ids in token_ids]
    return torch.cat(rows)


def batch_difference(model: PreTrainedModel, token_ids: list[list[int]], pad_id: int) -> float:
    """Return the largest difference of batched from single logits, relative to 1 + their size."""
    import torch

    with torch.inference_mode():
        alone = single_logits(model, token_ids)
        together = batch_logits(model, token_ids, pad_id)
    return float(((together - alone).abs() / (1 + alone.abs())).max())


def takes_batches(difference: float) -> bool:
    """Return whether texts can be computed together given such a `batch_difference`."""
    return difference <= _TOLERANCE  # false for NaN
