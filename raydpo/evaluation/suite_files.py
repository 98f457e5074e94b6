"""Completions of held-out prompts in the file formats of AlpacaEval and Arena-Hard.

A table of prompts and one of completions give the rows of such a file. The suite's own program
reads the file, and asks its judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from raydpo.core.errors import DataError
from raydpo.core.parts import Table
from raydpo.core.run import read_rows
from raydpo.core.storage import fingerprint
from raydpo.core.tables import Row

Json = dict[str, Any]


def alpaca_rows(prompts: Table, samples: Table, generator: str) -> list[Json]:
    """Return the rows of AlpacaEval's model_outputs.json (arXiv:2404.04475).

    Args:
        prompts: the held-out prompts, each a text or a single user message.
        samples: their completions; the first of each prompt counts.
        generator: the model's name on the leaderboard.

    Raises:
        DataError: a prompt is a conversation of several messages.
    """
    return [
        {"instruction": instruction, "output": sample["completion"], "generator": generator}
        for instruction, sample in _first_completions(prompts, samples)
    ]


def arena_rows(prompts: Table, samples: Table, model: str) -> list[Json]:
    """Return the lines of a model's answers in Arena-Hard-Auto 2 (arXiv:2406.11939).

    `uid` is the prompt's id: the prompts are read with `id_column: uid`. `metadata` is empty, since
    the suite counts tokens by a tokenizer of its own.

    Args:
        prompts: as for `alpaca_rows`.
        samples: as for `alpaca_rows`.
        model: the model's name.

    Raises:
        DataError: a prompt is a conversation of several messages.
    """
    sampled_at = datetime.fromisoformat(samples.manifest["committed_at"]).timestamp()
    return [
        {
            "uid": sample["prompt_id"],
            "ans_id": fingerprint([model, sample["prompt_id"], sample["completion_ids"]])[:22],
            "model": model,
            "messages": [
                {"role": "user", "content": instruction},
                {"role": "assistant", "content": {"answer": sample["completion"]}},
            ],
            "tstamp": sampled_at,
            "metadata": {},
        }
        for instruction, sample in _first_completions(prompts, samples)
    ]


def _first_completions(prompts: Table, samples: Table) -> Iterator[tuple[str, Row]]:
    """Yield each prompt's instruction, and its first completion that is there."""
    instructions = {row["prompt_id"]: row for row in read_rows(prompts.folder, prompts.manifest)}
    seen: set[str] = set()
    for row in read_rows(samples.folder, samples.manifest):
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            yield _instruction(instructions[row["prompt_id"]]), row


def _instruction(row: Row) -> str:
    messages = row["messages"]
    if messages is None:
        return row["prompt"]
    if [message["role"] for message in messages] != ["user"]:
        raise DataError(
            f"the prompt {row['prompt_id']} has the messages "
            f"{', '.join(message['role'] for message in messages)}",
            "the file's instruction is one text: what a single user message says",
            "evaluate prompts without a system message and without earlier turns for this suite",
        )
    return messages[0]["content"]
