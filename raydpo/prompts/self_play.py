"""Prompts of supervised examples: what self-play samples for.

What comes in: the table of examples. What goes out: a table of prompts, one an example,
in the same order, with the example's id.
"""

from __future__ import annotations

from raydpo.config import Config
from raydpo.models import load_tokenizer, tokenizer_fingerprint
from raydpo.parts import Table
from raydpo.run import PartResult, Stage, commit, finished_parts, open_stage, write_part
from raydpo.storage import Folder
from raydpo.tables import Row


def example_prompts(config: Config, folder: Folder, examples: Table) -> Table:
    """The prompts of all examples; those without a prompt or a completion are counted, not taken.

    Raises:
        ModelError: the tokenizer cannot be used.
    """
    inputs = {"examples": examples.fingerprint, "tokenizer": tokenizer_fingerprint(config.model)}
    stage = Stage(folder, "example_prompts", "prompts", inputs, {})
    manifest = open_stage(stage)
    if manifest is None:
        finished, tokenizer = finished_parts(stage), load_tokenizer(config.model)
        for index in range(examples.manifest["parts"]):
            if index not in finished:
                found = examples.part(index)
                kept = [row for row in found if has_both_sides(row)]
                ids = [row["token_ids"][: row["prompt_tokens"]] for row in kept]
                texts = tokenizer.batch_decode(ids)
                rows = [_prompt(*each) for each in zip(kept, ids, texts, strict=True)]
                counts = {
                    "input": len(found),
                    "without_prompt_or_completion": len(found) - len(kept),
                }
                write_part(stage, index, PartResult(rows, counts=counts))
        manifest = commit(stage, {})
    return Table(folder, manifest)


def has_both_sides(example: Row) -> bool:
    """Whether an example has tokens before and after the end of its prompt."""
    return 0 < example["prompt_tokens"] < len(example["token_ids"])


def _prompt(example: Row, ids: list[int], text: str) -> Row:
    return {
        "prompt_id": example["example_id"],
        "prompt": text,
        "messages": None,
        "prompt_ids": ids,
    }
