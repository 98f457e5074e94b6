"""Choose a padding token for a tokenizer that names none.

From the tokenizer and its model's config.json the module picks one of the tokenizer's own tokens.
raydpo itself never uses it to find the end of a text; it uses lengths and masks. But other programs
that load a saved model may need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raydpo.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def set_padding_token(
    tokenizer: PreTrainedTokenizerBase, name: str, config_values: dict[str, Any]
) -> None:
    """Set a safe padding token from its own vocabulary, if a tokenizer names none.

    The first choice is the token that the model's config names. Special tokens for padding, for
    unknown text or for later use follow. Only the last choice, the end of a text, occurs in
    ordinary data.

    Args:
        tokenizer: modified in place.
        name: name of the model, for the message.
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
    """Describe the padding token if the tokenizer's files name none; otherwise return None."""
    if tokenizer.init_kwargs.get("pad_token") is not None:
        return None
    return f"its files name no padding token: {tokenizer.pad_token!r} is taken"


def _candidates(tokenizer: PreTrainedTokenizerBase, config_values: dict[str, Any]) -> Iterator[str]:
    """Yield special tokens, the safest first."""
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
