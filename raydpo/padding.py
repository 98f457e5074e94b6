"""The padding token of a tokenizer that names none.

What comes in: a tokenizer, and what its model's config.json says. What goes out: one of the
tokenizer's own tokens. Nothing in raydpo finds a text's end by it: lengths and masks do. A
saved model needs one for others, who may.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raydpo.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def set_padding_token(
    tokenizer: PreTrainedTokenizerBase, name: str, config_values: dict[str, Any]
) -> None:
    """Give a tokenizer that names no padding token a safe one of its own.

    Safe is first what the model's config names, then a special token made for padding, for the
    unknown or for later use. Only the last choice, the end of a text, occurs in ordinary data.

    Args:
        tokenizer: it is changed.
        name: of the model, for the message.
        config_values: the content of the model's config.json.

    Raises:
        ModelError: it has no special token at all.
    """
    chosen = next(_candidates(tokenizer, config_values), None)
    if chosen is None:
        raise ModelError(
            f"model {name!r} has no padding token, and no special token that could be one",
            "the tokenizer names one, so that the saved model is well defined for others",
            "set model.pad_token to a token of the tokenizer that no text contains",
        )
    tokenizer.pad_token = chosen


def describe_chosen(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The padding token in words, where the tokenizer's files name none; else None."""
    if tokenizer.init_kwargs.get("pad_token") is not None:
        return None
    return f"its files name no padding token: {tokenizer.pad_token!r} is taken"


def _candidates(tokenizer: PreTrainedTokenizerBase, config_values: dict[str, Any]) -> Iterator[str]:
    """Special tokens from the safest on."""
    ends = (tokenizer.bos_token, tokenizer.eos_token)
    tokens = {
        number: str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and str(token) not in ends
    }
    configured = config_values.get("pad_token_id")
    if configured in tokens:
        yield tokens[configured]
    yield from (token for token in tokens.values() if "pad" in token.lower())
    if tokenizer.unk_token is not None and tokenizer.unk_token not in ends:
        yield str(tokenizer.unk_token)
    yield from (token for token in tokens.values() if "reserved" in token.lower())
    if tokenizer.eos_token is not None:
        yield str(tokenizer.eos_token)
