"""What a round trains on: curriculum by reward spread, and replay of earlier rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import OnlineConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import read_rows
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row
from raydpo.online.replay import spread_enough, training_groups
from tests.group_rows import group_row

MakeTable = Callable[[str, list[list[Row]]], Table]


@pytest.fixture
def make_preferences(tmp_path: Path) -> MakeTable:
    """A table of groups of its own folder, whose spreads are the numbers given."""
    from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part

    def make(name: str, spreads: list[float | None], sampled: bool = False) -> Table:
        stage = Stage(
            Place(folder_of(str(tmp_path / name)), "test"),
            "preferences",
            "sampled_preferences" if sampled else "preferences",
            {"n": name},
            {},
        )
        open_stage(stage)
        rows = [group(f"{name}-{i}", spread) for i, spread in enumerate(spreads)]
        logps = {"sampler_token_logps": [[-1.0], [-float(len(name))]]} if sampled else {}
        rows = [{**row, **logps} for row in rows]
        for index, start in enumerate(range(0, len(rows), 4)):
            write_part(stage, index, PartResult(rows[start : start + 4]))
        return Table(stage.folder, commit(stage, {"input": len(rows)}))

    return make  # pyright: ignore


def group(name: str, spread: float | None) -> Row:
    rewards = None if spread is None else [0.5, 0.5 - spread]
    return group_row(name, [[3], [4]], rewards=rewards, ranking=[0, 1])


def mixed(
    tmp_path: Path, own: Table, earlier: dict[int, Table], online: OnlineConfig, **changes: Any
) -> Table:
    folder = folder_of(str(tmp_path / "mixed"))
    place = Place(**{"folder": folder, "label": "test", "seed": 5, "round_index": 2, **changes})
    return training_groups(place, own, earlier, online)


def ids(table: Table) -> list[str]:
    return [row["group_id"] for row in read_rows(table.folder, table.manifest)]


def test_without_replay_and_curriculum_the_table_stays_as_it_is(tmp_path, make_preferences) -> None:
    own = make_preferences("own", [1.0, 2.0])
    assert mixed(tmp_path, own, {1: make_preferences("old", [1.0])}, OnlineConfig()) is own


def test_groups_below_the_quantile_are_left_out_and_counted(tmp_path, make_preferences) -> None:
    own = make_preferences("own", [0.1, 0.4, 0.2, 0.3, 0.0, 0.5])
    table = mixed(tmp_path, own, {}, OnlineConfig(min_spread_quantile=0.5))
    assert ids(table) == ["own-1", "own-3", "own-5"]
    assert table.manifest["counts"]["spread_too_little"] == 3
    assert table.manifest["counts"]["pairs"] == table.manifest["counts"]["rankings"] == 3


def test_groups_without_rewards_are_kept(make_preferences) -> None:
    table = make_preferences("own", [None, 0.1, 0.3])
    assert spread_enough(table, 0.6) == ["own-0", "own-2"]


def test_replayed_groups_have_their_share_their_age_and_their_rounds_name(
    tmp_path, make_preferences
) -> None:
    own = make_preferences("own", [1.0] * 6)
    earlier = {r: make_preferences(f"r{r}", [1.0] * 10) for r in (0, 1)}
    online = OnlineConfig.model_validate({"replay": {"share": 0.4, "max_age_rounds": 1}})
    table = mixed(tmp_path, own, earlier, online)
    replayed = ids(table)[6:]
    assert len(replayed) == 4 == table.manifest["counts"]["replayed"]
    assert all(name.startswith("r1-") and name.endswith("@round-001") for name in replayed)
    older = online.model_copy(
        update={"replay": online.replay.model_copy(update={"max_age_rounds": 2})}
    )
    both = mixed(tmp_path, own, earlier, older, folder=folder_of(str(tmp_path / "older")))
    assert {name.split("@")[1] for name in ids(both)[6:]} == {"round-000", "round-001"}


def test_replayed_samples_keep_the_logps_of_the_policy_that_sampled_them(
    tmp_path, make_preferences
) -> None:
    own = make_preferences("own", [1.0, 0.0, 1.0], sampled=True)
    earlier = {1: make_preferences("older", [1.0] * 3, sampled=True)}
    online = OnlineConfig.model_validate({"replay": {"share": 0.5}})
    table = mixed(tmp_path, own, earlier, online)
    rows = list(read_rows(table.folder, table.manifest))
    assert [row["sampler_token_logps"][1] for row in rows] == [[-3.0]] * 3 + [[-5.0]] * 3
    assert table.manifest["counts"]["samples"] == 12
    assert table.manifest["counts"]["groups_with_equal_rewards"] == 1


def test_the_replayed_groups_are_a_function_of_seed_and_round(tmp_path, make_preferences) -> None:
    own = make_preferences("own", [1.0] * 6)
    earlier = {1: make_preferences("old", [1.0] * 30)}
    online = OnlineConfig.model_validate({"replay": {"share": 0.5}})

    def drawn(name: str, seed: int) -> list[str]:
        folder = folder_of(str(tmp_path / name))
        return ids(mixed(tmp_path, own, earlier, online, folder=folder, seed=seed))

    assert drawn("a", 1) == drawn("b", 1)
    assert drawn("a", 1) != drawn("c", 2)


def test_a_changed_earlier_round_makes_the_mix_stale(tmp_path, make_preferences) -> None:
    own = make_preferences("own", [1.0] * 6)
    online = OnlineConfig.model_validate({"replay": {"share": 0.5}})
    first = mixed(tmp_path, own, {1: make_preferences("old", [1.0] * 6)}, online)
    second = mixed(tmp_path, own, {1: make_preferences("other", [1.0] * 6)}, online)
    assert second.fingerprint != first.fingerprint
    assert all(name.startswith(("own-", "other-")) for name in ids(second))
