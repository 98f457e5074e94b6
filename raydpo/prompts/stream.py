"""Which prompts a round samples for: a selection of the run's prompts table.

What comes in: the table of all prompts. What goes out: a table of the round's prompts, in
the order of the first. The choice is a function of the seed and the round alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import numpy as np
import numpy.typing as npt

from raydpo.config_content import content_of
from raydpo.config_online import OnlineConfig, TrainingGroupsConfig
from raydpo.errors import ConfigError
from raydpo.parts import Table
from raydpo.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.storage import Folder
from raydpo.tables import Row


def round_prompts(
    *,
    folder: Folder,
    prompts: Table,
    online: OnlineConfig,
    seed: int,
    round_index: int,
    rows_per_part: int,
) -> Table:
    """The prompts of a round, in `folder`.

    Raises:
        ConfigError: a round asks for more prompts than there are, or a share has none.
    """
    stage = round_prompts_stage(folder, prompts, online, seed, round_index, rows_per_part)
    manifest = open_stage(stage)
    if manifest is None:
        total = prompts.manifest["counts"]["output"]
        chosen = round_indices(online, total, seed, round_index)
        for index, rows in enumerate(_chunks(_selected(prompts, chosen), rows_per_part)):
            write_part(stage, index, PartResult(rows, counts={"input": len(rows)}))
        manifest = commit(stage, {})
    return Table(folder, manifest)


def round_prompts_stage(
    folder: Folder,
    prompts: Table,
    online: OnlineConfig,
    seed: int,
    round_index: int,
    rows_per_part: int,
) -> Stage:
    """What the prompts of a round are made from; arguments as of `round_prompts`."""
    content = content_of(online, without=TrainingGroupsConfig)
    shares = {"rounds": online.rounds} if online.prompts == "split" else {}
    place = {"seed": seed, "round": round_index, "rows_per_part": rows_per_part}
    return Stage(
        folder=folder,
        name="round_prompts",
        table="prompts",
        inputs={"prompts": prompts.fingerprint},
        settings={**content, **shares, **place},
    )


def round_indices(
    online: OnlineConfig, total: int, seed: int, round_index: int
) -> npt.NDArray[np.int64]:
    """Row numbers of a round's prompts among `total`, ascending, none twice.

    `cycle` goes round one shuffled circle of all prompts; `sample` draws without
    replacement, anew each round; `split` cuts one shuffled row of them into equal shares.

    Raises:
        ConfigError: a round asks for more prompts than there are, or a share has none.
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
    """The rows of these numbers, a part in memory at a time."""
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
