"""The groups that a round trains on: its own, some left out, some of earlier rounds.

What comes in: preferences of this round and of earlier ones. What goes out: one table
of preferences: the round's own groups whose rewards are spread enough, then the
replayed ones, whose `group_id` names their round. The choice is a function of the
seed, the round and the groups' ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from raydpo.config_content import content_of
from raydpo.config_online import OnlineConfig, RoundPromptsConfig
from raydpo.parts import Table
from raydpo.progress import logger
from raydpo.run import PartResult, Stage, commit, open_stage, read_part, write_part
from raydpo.storage import Folder, canonical_json
from raydpo.tables import Row


@dataclass(frozen=True)
class Pick:
    """Groups of one round's preferences that are trained on; `replayed_from` names an earlier round."""

    table: Table
    group_ids: frozenset[str]
    replayed_from: int | None = None


def training_groups(
    *,
    folder: Folder,
    own: Table,
    earlier: Mapping[int, Table],
    online: OnlineConfig,
    seed: int,
    round_index: int,
    what: str,
) -> Table:
    """The groups of a round; without curriculum and replay its own table as it is.

    Args:
        folder: where a mixed table goes.
        own: preferences of this round.
        earlier: preferences of the rounds before, by round; too old ones are not taken.
        online: the shares.
        seed: the run's seed.
        round_index: the round.
        what: the stage and round, for the log.
    """
    pool = {r: earlier[r] for r in sorted(_replayed_rounds(earlier, online, round_index))}
    if not mixes(earlier, online, round_index):
        return own
    stage = training_groups_stage(folder, own, pool, online, seed, round_index)
    manifest = open_stage(stage)
    if manifest is None:
        picks = _pick(own, pool, online, seed, round_index)
        for index, part in enumerate(_parts(picks)):
            write_part(stage, index, part)
        manifest = commit(stage, {})
        _say(manifest["counts"], what)
    return Table(folder, manifest)


def training_groups_stage(
    folder: Folder,
    own: Table,
    pool: Mapping[int, Table],
    online: OnlineConfig,
    seed: int,
    round_index: int,
) -> Stage:
    """What a mixed table is made from; `pool` are the rounds that groups may be replayed from."""
    return Stage(
        folder=folder,
        name="training_groups",
        table="preferences",
        inputs={
            "preferences": own.fingerprint,
            **{f"round {r}": table.fingerprint for r, table in pool.items()},
        },
        settings={
            **content_of(online, without=RoundPromptsConfig),
            "replay": {**content_of(online.replay), "max_age_rounds": online.replay.oldest_rounds},
            "seed": seed,
            "round": round_index,
        },
    )


def mixes(earlier: Iterable[int], online: OnlineConfig, round_index: int) -> bool:
    """Whether a round trains on other groups than just its own; `earlier` are rounds with groups."""
    return bool(_replayed_rounds(earlier, online, round_index)) or online.min_spread_quantile > 0


def _replayed_rounds(earlier: Iterable[int], online: OnlineConfig, round_index: int) -> set[int]:
    oldest = round_index - online.replay.oldest_rounds
    return {r for r in earlier if r >= oldest} if online.replay.share > 0 else set[int]()


def spread_enough(table: Table, quantile: float) -> list[str]:
    """Ids of the groups whose reward spread, best - worst, reaches the quantile of all spreads.

    Groups without rewards have nothing to spread: they are kept, and do not count.
    """
    spreads: dict[str, float | None] = {}
    for index in range(table.manifest["parts"]):
        part = read_part(table.folder, table.manifest, index).select(["group_id", "rewards"])
        for row in part.to_pylist():
            rewards = row["rewards"]
            spreads[row["group_id"]] = max(rewards) - min(rewards) if rewards else None
    known = [spread for spread in spreads.values() if spread is not None]
    least = float(np.quantile(known, quantile)) if known else 0.0
    return [name for name, spread in spreads.items() if spread is None or spread >= least]


def _pick(
    own: Table, pool: Mapping[int, Table], online: OnlineConfig, seed: int, round_index: int
) -> list[Pick]:
    kept = spread_enough(own, online.min_spread_quantile)
    share = online.replay.share
    wanted = round(len(kept) * share / (1 - share))
    known = [
        (source, name)
        for source, table in pool.items()
        for name in spread_enough(table, online.min_spread_quantile)
    ]
    known.sort(key=lambda group: _draw(seed, round_index, *group))
    drawn = known[:wanted]
    replayed = [
        Pick(table, frozenset(name for r, name in drawn if r == source), source)
        for source, table in pool.items()
    ]
    return [Pick(own, frozenset(kept)), *replayed]


def _draw(seed: int, round_index: int, source: int, group_id: str) -> bytes:
    return hashlib.sha256(canonical_json([seed, round_index, source, group_id])).digest()


def _parts(picks: list[Pick]) -> Iterator[PartResult]:
    """A part for each part of the tables, in their order; empty where nothing is taken of it."""
    for pick in picks:
        for index in range(pick.table.manifest["parts"]):
            rows = pick.table.part(index)
            kept = [_row(row, pick) for row in rows if row["group_id"] in pick.group_ids]
            replayed = len(kept) if pick.replayed_from is not None else 0
            left_out = len(rows) - len(kept) if pick.replayed_from is None else 0
            counts = {
                "input": len(rows),
                **_kinds_of_labels(kept),
                "replayed": replayed,
                "spread_too_little": left_out,
            }
            yield PartResult(kept, counts=counts)


def _kinds_of_labels(rows: list[Row]) -> dict[str, int]:
    """The counts that every preferences table has."""
    pairs = [pair for row in rows for pair in row["pairs"]]
    return {
        "pairs": len(pairs),
        "soft_labels": sum(pair["probability"] is not None for pair in pairs),
        "rankings": sum(row["ranking"] is not None for row in rows),
    }


def _row(row: Row, pick: Pick) -> Row:
    if pick.replayed_from is None:
        return row
    return {**row, "group_id": f"{row['group_id']}@round-{pick.replayed_from:03d}"}


def _say(counts: dict[str, int], what: str) -> None:
    logger.info(
        "[%s] %d groups, %d of them replayed; %d of this round left out for too little spread",
        what,
        counts["output"],
        counts["replayed"],
        counts["spread_too_little"],
    )
