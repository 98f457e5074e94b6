"""The logits of a classifier for several texts at once, equal to those of each text alone.

What comes in: a sequence classifier and token ids. What goes out: logits. Decoders are read at
the last token of each text by its length: transformers looks for the padding token's id
instead, which may be another one than the tokenizer's, or stand in a text.

Shapes: B texts, L tokens of the longest, H hidden, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: Largest difference of a logit from that of the text alone, of 1 + its size.
_TOLERANCE: Final = 1e-3


def without_padding_id(model: PreTrainedModel, pad_id: int) -> None:
    """Let nothing in the model's own forward pass depend on which token pads.

    Args:
        model: it is changed: a decoder without a padding id reads a single text's last token.
        pad_id: for other models that name no padding token.
    """
    config: Any = model.config.get_text_config()
    if is_decoder(model):
        config.pad_token_id = None
    elif config.pad_token_id is None:
        config.pad_token_id = pad_id


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether it is a decoder with a layer `score` on top, as transformers builds classifiers."""
    from torch import nn

    head: Any = getattr(model, "score", None)
    return isinstance(head, nn.Module) and not model.config.is_encoder_decoder


def batch_logits(model: PreTrainedModel, token_ids: list[list[int]], pad_id: int) -> torch.Tensor:
    """Logits of texts, padded right: [B, C]."""
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
    """Logits by the model's own forward pass, one text at a time, without padding: [B, C]."""
    import torch

    rows = [model(input_ids=torch.tensor([ids], device=model.device)).logits for ids in token_ids]
    return torch.cat(rows)


def batch_difference(model: PreTrainedModel, token_ids: list[list[int]], pad_id: int) -> float:
    """How far a batch's logits are from those of single texts; the largest, of 1 + their size."""
    import torch

    with torch.inference_mode():
        alone = single_logits(model, token_ids)
        together = batch_logits(model, token_ids, pad_id)
    return float(((together - alone).abs() / (1 + alone.abs())).max())


def takes_batches(difference: float) -> bool:
    """Whether texts can be computed together at such a `batch_difference`."""
    return difference <= _TOLERANCE  # not true of NaN
