"""Which prompts a round samples for."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config.job import OnlineConfig
from raydpo.core.errors import ConfigError
from raydpo.core.place import Place
from raydpo.core.run import read_rows
from raydpo.core.storage import folder_of
from raydpo.online.prompts import round_indices, round_prompts
from tests.integration.sampling_tables import make_prompts


def indices(online: OnlineConfig, round_index: int, total: int = 10, seed: int = 3) -> list[int]:
    return round_indices(online, total, seed, round_index).tolist()


def test_a_cycle_meets_every_prompt_once_before_it_meets_one_again() -> None:
    online = OnlineConfig(prompts="cycle", prompts_per_round=4)
    rounds = [indices(online, r) for r in range(5)]
    assert sorted(i for chosen in rounds for i in chosen) == sorted([*range(10)] * 2)
    assert len({*rounds[0], *rounds[1]}) == 8
    assert all(len(set(chosen)) == 4 for chosen in rounds)


def test_a_split_shares_all_prompts_among_the_rounds() -> None:
    online = OnlineConfig(prompts="split", rounds=3)
    rounds = [indices(online, r) for r in range(3)]
    assert sorted(i for chosen in rounds for i in chosen) == [*range(10)]
    assert {len(chosen) for chosen in rounds} == {3, 4}


def test_a_sample_is_drawn_anew_each_round_without_repeats() -> None:
    online = OnlineConfig(prompts="sample", prompts_per_round=5)
    rounds = [indices(online, r) for r in range(4)]
    assert all(len(set(chosen)) == 5 for chosen in rounds)
    assert len({tuple(chosen) for chosen in rounds}) > 1


@pytest.mark.parametrize("mode", ["cycle", "sample", "split"])
def test_the_choice_is_a_function_of_seed_and_round(mode) -> None:
    online = OnlineConfig(prompts=mode, prompts_per_round=None if mode == "split" else 4)
    assert indices(online, 1) == indices(online, 1)
    assert indices(online, 1) != indices(online, 1, seed=4)


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="prompts_per_round"):
        indices(OnlineConfig(prompts_per_round=11), 0)
    with pytest.raises(ConfigError, match="no round is empty"):
        indices(OnlineConfig(prompts="split", rounds=11), 0)


def test_the_round_has_the_chosen_rows_in_parts_of_their_own(tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "all", [(i, [1, 5 + i]) for i in range(10)], 4)
    online = OnlineConfig(prompts="cycle", prompts_per_round=6)
    folder = folder_of(str(tmp_path / "round"))
    place = Place(folder, "test", seed=3, round_index=1)
    table = round_prompts(place, prompts, online, rows_per_part=4)
    found = [int(row["prompt_id"]) for row in read_rows(table.folder, table.manifest)]
    assert found == indices(online, 1)
    assert table.manifest["parts"] == 2
    again = round_prompts(place, prompts, online, rows_per_part=4)
    assert again.manifest == table.manifest
