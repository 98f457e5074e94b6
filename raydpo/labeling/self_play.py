"""Self-play: the completion in the data is chosen, the policy's own are rejected.

What comes in: candidates for the prompts of supervised examples, and the examples. What goes
out: the table of preferences, a group a prompt. No reward is asked: this is SPIN
(arXiv:2401.01335), whose opponent, the policy of the round before, is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from raydpo.config import Config
from raydpo.errors import DataError
from raydpo.labeling.groups import by_prompt, preference_row, refuse_zero_pairs
from raydpo.models import load_tokenizer, tokenizer_fingerprint
from raydpo.parts import Table, describe_counts
from raydpo.progress import logger
from raydpo.run import PartResult, Stage, commit, finished_parts, open_stage, read_rows, write_part
from raydpo.storage import Folder
from raydpo.tables import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Number of the data's completion among a group's candidates.
_DATA: Final = -1


def self_play_preferences(
    *, config: Config, folder: Folder, candidates: Table, examples: Table, what: str
) -> Table:
    """Pairs of the data's completion with each of the policy's that differs from it.

    Args:
        config: the job; its `model` has the tokenizer that decodes the data's completions.
        folder: where the preferences table goes.
        candidates: the policy's completions, in the order of the examples.
        examples: the data.
        what: the stage and round, for the log.

    Raises:
        DataError: a prompt is not of the examples, or not a single pair came out.
    """
    inputs = {
        "candidates": candidates.fingerprint,
        "examples": examples.fingerprint,
        "tokenizer": tokenizer_fingerprint(config.model),
    }
    stage = Stage(folder, "preferences", "preferences", inputs, {"pairs": "self_play"})
    manifest = open_stage(stage)
    if manifest is None:
        finished, tokenizer = finished_parts(stage), load_tokenizer(config.model)
        data = read_rows(examples.folder, examples.manifest)
        for index in range(candidates.manifest["parts"]):
            part = self_play_part(candidates.part(index), data, tokenizer)
            if index not in finished:
                write_part(stage, index, part)
        manifest = commit(stage, {})
        logger.info("[%s] done: %s", what, describe_counts(manifest))
    way_out = "the policy samples the very completions of the data: there is nothing left to learn"
    return refuse_zero_pairs(Table(folder, manifest), way_out)


def self_play_part(
    candidates: list[Row], examples: Iterator[Row], tokenizer: PreTrainedTokenizerBase
) -> PartResult:
    """The groups of one part of the candidates; `examples` goes on where the last part ended.

    Raises:
        DataError: a prompt is not among the examples that are left.
    """
    rows: list[Row] = []
    names = ("pairs", "soft_labels", "identical", "groups_without_pairs")
    counts = {"input": len(candidates), **dict.fromkeys(names, 0)}
    for group in by_prompt(candidates):
        data = _with_id(group[0]["prompt_id"], examples)
        ids = data["token_ids"][data["prompt_tokens"] :]
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        chosen = {**group[0], "candidate": _DATA, "completion": text, "completion_ids": ids}
        own = [row for row in group if row["completion_ids"] and row["completion_ids"] != ids]
        counts["pairs"] += len(own)
        counts["soft_labels"] += len(own)  # that the data win is certain
        counts["identical"] += len(group) - len(own)
        counts["groups_without_pairs"] += not own
        if own:
            pairs = [(_DATA, row["candidate"]) for row in own]
            rows.append(preference_row([chosen, *own], pairs, [1.0] * len(pairs)))
    return PartResult(rows, counts=counts)


def _with_id(name: str, examples: Iterator[Row]) -> Row:
    for row in examples:
        if row["example_id"] == name:
            return row
    raise DataError(
        f"candidates of prompt {name!r}",
        "self-play samples for the prompts of the examples, in their order",
        "delete the round's `candidates` folder and run the same command again",
    )
