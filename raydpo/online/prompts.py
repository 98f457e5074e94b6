"""Select the prompts of a round from the run's prompts table.

The table of the round's prompts keeps the order of the run's table. The choice depends only on the
seed and the round. For self-play, the run's table has one prompt for each supervised example, in the
same order and with the example's id.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import assert_never

import numpy as np
import numpy.typing as npt

from raydpo.config.content import content_of
from raydpo.config.job import ModelConfig
from raydpo.config.online import OnlineConfig, TrainingGroupsConfig
from raydpo.core.errors import ConfigError
from raydpo.core.metadata import metadata_count
from raydpo.core.on_driver import map_on_driver, write_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, layout_of
from raydpo.core.tables import Row
from raydpo.models.loading import load_tokenizer, tokenizer_fingerprint


def round_prompts(place: Place, prompts: Table, online: OnlineConfig, rows_per_part: int) -> Table:
    """Write the prompts of a round.

    Raises:
        ConfigError: a round asks for more prompts than there are, or a share is empty.
    """
    stage = round_prompts_stage(place, prompts, online, rows_per_part)

    def parts() -> Iterator[PartResult]:
        total = prompts.manifest["counts"]["output"]
        chosen = round_indices(online, total, place.seed, place.round_index)
        for rows in _chunks(_selected(prompts, chosen), layout_of(stage)["rows_per_part"]):
            yield PartResult(rows, counts={"input": len(rows), **metadata_count(rows)})

    return write_on_driver(stage, parts)


def round_prompts_stage(
    place: Place, prompts: Table, online: OnlineConfig, rows_per_part: int
) -> Stage:
    """Describe what the prompts of a round are made from; arguments as of `round_prompts`."""
    content = content_of(online, without=TrainingGroupsConfig)
    shares = {"rounds": online.rounds} if online.prompts == "split" else {}
    drawn_by = {"seed": place.seed, "round": place.round_index}
    return Stage(
        place=place,
        name="round_prompts",
        table="prompts",
        inputs={"prompts": prompts.fingerprint},
        settings={**content, **shares, **drawn_by},
        layout={"rows_per_part": rows_per_part},
    )


def round_indices(
    online: OnlineConfig, total: int, seed: int, round_index: int
) -> npt.NDArray[np.int64]:
    """Return row numbers of a round's prompts among `total`, ascending, without duplicates.

    `cycle` goes round one shuffled circle of all prompts; `sample` draws again without replacement
    in each round; `split` cuts one shuffled row of them into equal shares.

    Raises:
        ConfigError: a round asks for more prompts than there are, or a share is empty.
    """
    count = total if online.prompts_per_round is None else online.prompts_per_round
    if count > total or (online.prompts == "split" and online.rounds > total):
        raise ConfigError(
            f"a round takes {count} prompts, and there are {online.rounds} rounds",
            f"prompts hold {total} rows; no prompt stands twice in a round, and no round is empty",
            "lower online.prompts_per_round or online.rounds, or give more prompts",
        )
    match online.prompts:
        case "sample":
            drawn = np.random.default_rng([seed, round_index]).permutation(total)[:count]
        case "cycle":
            places = (round_index * count + np.arange(count)) % total
            drawn = np.random.default_rng([seed]).permutation(total)[places]
        case "split":
            shares = np.array_split(np.random.default_rng([seed]).permutation(total), online.rounds)
            drawn = shares[round_index]
        case _:
            assert_never(online.prompts)
    return np.sort(drawn)


def _selected(prompts: Table, chosen: npt.NDArray[np.int64]) -> Iterator[Row]:
    """Yield the rows of these numbers, with one part in memory at a time."""
    before = 0
    wanted = set(chosen.tolist())
    for index in range(prompts.manifest["parts"]):
        rows = prompts.part(index)
        yield from (row for place, row in enumerate(rows, before) if place in wanted)
        before += len(rows)


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


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
