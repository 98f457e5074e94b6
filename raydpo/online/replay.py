"""Select the groups that a round trains on: its own, minus some, plus some of earlier rounds.

Preferences of this round and of earlier ones give one table of preferences. It starts with the
round's own groups whose reward spread is large enough. The replayed groups follow; their `group_id`
names their round. The choice depends only on the seed, the round and the groups' ids.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from raydpo.config.content import content_of
from raydpo.config.online import OnlineConfig, RoundPromptsConfig
from raydpo.core.on_driver import write_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage, read_part
from raydpo.core.storage import canonical_json
from raydpo.core.tables import Row
from raydpo.labeling.groups import sample_counts


@dataclass(frozen=True)
class Pick:
    """Groups of one round to train on; `replayed_from` names the round if it is an earlier one."""

    table: Table
    group_ids: frozenset[str]
    replayed_from: int | None = None


def training_groups(
    place: Place, own: Table, earlier: Mapping[int, Table], online: OnlineConfig
) -> Table:
    """Return the groups of a round; without curriculum and replay, its own table unchanged.

    Args:
        place: where a mixed table goes.
        own: the preferences of this round.
        earlier: the preferences of the rounds before, by round; rounds that are too old are
            ignored.
        online: the section with the shares.
    """
    index = place.round_index
    pool = {r: earlier[r] for r in sorted(replayed_rounds(earlier, online, index))}
    if not mixes(earlier, online, index):
        return own
    stage = training_groups_stage(place, own, pool, online)

    def parts() -> Iterator[PartResult]:
        counts = Counter[str]()
        for part in _parts(_pick(own, pool, online, place.seed, index)):
            counts.update(part.counts, output=len(part.rows))
            yield part
        _say(counts, place.label)

    return write_on_driver(stage, parts)


def training_groups_stage(
    place: Place, own: Table, pool: Mapping[int, Table], online: OnlineConfig
) -> Stage:
    """Describe what a mixed table is made from; `pool` are the rounds that can be replayed."""
    return Stage(
        place=place,
        name="training_groups",
        table=own.manifest["table"],
        inputs={
            "preferences": own.fingerprint,
            **{f"round {r}": table.fingerprint for r, table in pool.items()},
        },
        settings={
            **content_of(online, without=RoundPromptsConfig),
            "replay": {**content_of(online.replay), "max_age_rounds": online.replay.oldest_rounds},
            "seed": place.seed,
            "round": place.round_index,
        },
    )


def mixes(earlier: Iterable[int], online: OnlineConfig, round_index: int) -> bool:
    """Return whether a round trains on others than its own groups; `earlier` have groups."""
    return bool(replayed_rounds(earlier, online, round_index)) or online.min_spread_quantile > 0


def replayed_rounds(earlier: Iterable[int], online: OnlineConfig, round_index: int) -> set[int]:
    """Return the rounds among `earlier` whose groups can be replayed."""
    oldest = round_index - online.replay.oldest_rounds
    return {r for r in earlier if r >= oldest} if online.replay.share > 0 else set[int]()


def spread_enough(table: Table, quantile: float) -> list[str]:
    """Return ids of groups whose reward spread, best - worst, reaches the quantile of all spreads.

    Groups without rewards have no spread: they are kept and do not count.
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
    """Yield a part for each part of the tables, in order; empty if no group of it is chosen."""
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
    """Return the counts that every preferences table has."""
    pairs = [pair for row in rows for pair in row["pairs"]]
    return {
        "pairs": len(pairs),
        "soft_labels": sum(pair["probability"] is not None for pair in pairs),
        "rankings": sum(row["ranking"] is not None for row in rows),
        **(sample_counts(rows) if any("sampler_token_logps" in row for row in rows) else {}),
    }


def _row(row: Row, pick: Pick) -> Row:
    if pick.replayed_from is None:
        return row
    return {**row, "group_id": f"{row['group_id']}@round-{pick.replayed_from:03d}"}


def _say(counts: Mapping[str, int], what: str) -> None:
    logger.info(
        "[%s] %d groups, %d of them replayed; %d of this round left out for too little spread",
        what,
        counts["output"],
        counts["replayed"],
        counts["spread_too_little"],
    )
