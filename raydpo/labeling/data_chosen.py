"""The data's chosen completions, for pairs of them with sampled candidates.

A column of the prompts, which travels with the candidates as metadata, holds the completion that the
data chose: text, or messages of which the last is the assistant's. It becomes token ids as the
completions of existing preferences do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from raydpo.config.job import ModelConfig
from raydpo.config.pairs import PairsConfig
from raydpo.core.tables import Row
from raydpo.labeling.builders import DATA
from raydpo.models.loading import load_tokenizer
from raydpo.prompts.encode import Encoder, make_encoder
from raydpo.prompts.rows import RefusedRow


@dataclass(frozen=True)
class DataChosen:
    """Reads the data's completion of a prompt.

    Attributes:
        encoder: of the model's tokenizer.
        column: the column of the prompts that holds it.
        max_tokens: its longest length in tokens, including the end token.
    """

    encoder: Encoder
    column: str
    max_tokens: int

    @classmethod
    def of(cls, pairs: PairsConfig, model: ModelConfig) -> DataChosen:
        """Load what is needed of the model.

        Raises:
            ModelError: its tokenizer cannot be used.
        """
        encoder = make_encoder(load_tokenizer(model))
        return cls(encoder, pairs.chosen_column, pairs.max_chosen_tokens)

    def candidate(self, sampled: Row) -> Row | None:
        """Return the data's completion as a candidate of the prompt that a row was sampled for.

        Returns:
            The row with the number `DATA`, or None if the prompt brings no completion.

        Raises:
            RefusedRow: the completion cannot be used.
        """
        metadata: dict[str, Any] = json.loads(sampled.get("metadata") or "{}")
        text = chosen_text(metadata.get(self.column))
        if text is None:
            return None
        [ids] = self.encoder.continuations([text])
        in_conversation = sampled.get("prompt_messages") is not None
        whole = self._ended(ids) if in_conversation else self.encoder.finished(ids)
        if len(whole) > self.max_tokens:
            raise RefusedRow(f"{len(whole)} tokens (labeling.pairs.max_chosen_tokens)")
        return {**sampled, "candidate": DATA, "completion": text, "completion_ids": whole}

    def _ended(self, ids: list[int]) -> list[int]:
        """Return the words of an assistant's turn with the token that ends it."""
        return [*self.encoder.inner(ids), self.encoder.end.after_turn]


def chosen_text(value: Any) -> str | None:
    """Return the completion in a column's value; None if there is none.

    Raises:
        RefusedRow: it is neither text nor messages that end with the assistant's.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    last = cast("list[Any]", value)[-1] if isinstance(value, list) else None
    if isinstance(last, dict):
        message = cast("dict[str, Any]", last)
        content = message.get("content")
        if message.get("role") == "assistant" and isinstance(content, str) and content.strip():
            return content
    raise RefusedRow("neither text nor messages that end with text of the assistant")
