"""Make the prompts of supervised examples, for which self-play samples.

The table of examples gives a table of prompts, one per example, in the same order and with the
example's id.
"""

from __future__ import annotations

import functools

from raydpo.config.job import ModelConfig
from raydpo.core.on_driver import map_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage
from raydpo.core.tables import Row
from raydpo.models.loading import load_tokenizer, tokenizer_fingerprint


def example_prompts(place: Place, examples: Table, model: ModelConfig) -> Table:
    """Make prompts of all examples; those without prompt or completion are only counted.

    Raises:
        ModelError: the tokenizer cannot be used.
    """
    inputs = {"examples": examples.fingerprint, "tokenizer": tokenizer_fingerprint(model)}
    stage = Stage(place, "example_prompts", "prompts", inputs, {})
    tokenizer = functools.cache(lambda: load_tokenizer(model))

    def part(found: list[Row]) -> PartResult:
        kept = [row for row in found if has_both_sides(row)]
        ids = [row["token_ids"][: row["prompt_tokens"]] for row in kept]
        texts = tokenizer().batch_decode(ids)
        rows = [_prompt(*each) for each in zip(kept, ids, texts, strict=True)]
        counts = {"without_prompt_or_completion": len(found) - len(kept)}
        return PartResult(rows, counts=counts)

    return map_on_driver(stage, part, examples)


def has_both_sides(example: Row) -> bool:
    """Return whether an example has tokens before and after the end of its prompt."""
    return 0 < example["prompt_tokens"] < len(example["token_ids"])


def _prompt(example: Row, ids: list[int], text: str) -> Row:
    return {
        "prompt_id": example["example_id"],
        "prompt": text,
        "messages": None,
        "prompt_ids": ids,
    }
