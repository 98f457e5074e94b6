"""Self-play: the data's completion is chosen, and the policy's own completions are rejected.

From candidates for the prompts of supervised examples, and from the examples, the stage makes the
table of preferences, one group per prompt. It uses no reward. This is SPIN (arXiv:2401.01335),
whose opponent, the policy of the previous round, is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from raydpo.config.job import ModelConfig
from raydpo.core.errors import DataError
from raydpo.core.on_driver import write_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, read_rows
from raydpo.core.tables import Row
from raydpo.labeling.groups import by_prompt, preference_row, refuse_zero_pairs
from raydpo.models.loading import load_tokenizer, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Number of the data's completion among a group's candidates.
_DATA: Final = -1


def self_play_preferences(
    place: Place, candidates: Table, examples: Table, model: ModelConfig
) -> Table:
    """Pair the data's completion with each of the policy's completions that differs from it.

    Args:
        place: where the preferences table goes.
        candidates: the policy's completions, in the order of the examples.
        examples: the data.
        model: its tokenizer decodes the data's completions.

    Raises:
        DataError: a prompt is not among the examples, or no pair resulted.
    """
    inputs = {
        "candidates": candidates.fingerprint,
        "examples": examples.fingerprint,
        "tokenizer": tokenizer_fingerprint(model),
    }
    stage = Stage(place, "preferences", "preferences", inputs, {"pairs": "self_play"})

    def parts() -> Iterator[PartResult]:
        tokenizer = load_tokenizer(model)
        data = read_rows(examples.folder, examples.manifest)
        for index in range(candidates.manifest["parts"]):
            yield self_play_part(candidates.part(index), data, tokenizer)

    table = write_on_driver(stage, parts)
    way_out = "the policy samples the very completions of the data: there is nothing left to learn"
    return refuse_zero_pairs(table, way_out)


def self_play_part(
    candidates: list[Row], examples: Iterator[Row], tokenizer: PreTrainedTokenizerBase
) -> PartResult:
    """Build the groups of one part of the candidates; `examples` continues after the last part.

    Raises:
        DataError: a prompt is not among the remaining examples.
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
        counts["soft_labels"] += len(own)  # it is certain that the data's completion wins
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
