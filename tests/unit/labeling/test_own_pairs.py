"""A pair builder from a module outside of raydpo, through the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.check.own_functions import try_apart
from raydpo.config.job import LabelingConfig, ModelConfig, PairsConfig
from raydpo.core.errors import ConfigError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.storage import Folder
from raydpo.labeling.own_pairs import load_pairs, try_pairs
from raydpo.labeling.pairs import Draws, Scored, build_pairs
from raydpo.labeling.preferences import preferences_stage

SOURCE = """
import itertools

def adjacent(rewards):
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    return [(b, a) for a, b in zip(order, order[1:])]

def every(rewards, completion_ids):
    return list(itertools.combinations(range(len(completion_ids)), 2))

def drawn(rewards, uniform):
    return [min(itertools.combinations(range(len(rewards)), 2), key=lambda p: uniform(*p))]

CALLS = []
def changing(rewards):
    CALLS.append(1)
    return [(0, len(CALLS))]

def beyond(rewards): return [(0, len(rewards))]
def itself(rewards): return [(1, 1)]
def twice(rewards): return [(0, 1), (1, 0)]
def nothing(rewards): return None
def truth(rewards): return [(True, 2)]
def broken(rewards): return rewards["x"]
def asks(rewards, prompts): return []
async def awaited(rewards): return []
"""
REWARDS = (0.25, 2.0, -1.0, 0.5)
SCORED = [Scored(number, (number,), reward) for number, reward in enumerate(REWARDS)]
DRAWS = Draws(seed=3, round_index=0, prompt_id="p")


def built(path: str, **values: Any) -> list[tuple[int, int]]:
    config = PairsConfig(builder=path, **values)
    own = load_pairs(path) if config.own_builder else None
    return build_pairs(SCORED, config, DRAWS, own).pairs


def test_matches_are_the_function_s_and_labels_the_framework_s(module: str) -> None:
    assert set(built(f"{module}:adjacent")) == {(1, 3), (3, 0), (0, 2)}
    assert set(built(f"{module}:adjacent", min_margin=0.3)) == {(1, 3), (0, 2)}
    turned = built(f"{module}:adjacent", flip_rate=1.0)
    assert set(turned) == {(3, 1), (0, 3), (2, 0)}


def test_a_builder_that_names_all_pairs_equals_the_one_of_the_package(module: str) -> None:
    assert built(f"{module}:every") == built("all_pairs")


def test_draws_are_the_run_s(module: str) -> None:
    assert built(f"{module}:drawn") == built(f"{module}:drawn")
    try_pairs(load_pairs(f"{module}:drawn"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("changing", "gave other matches"),
        ("beyond", "of 4 candidates"),
        ("itself", "of 4 candidates"),
        ("twice", "which stood before"),
        ("nothing", "returned the match None"),
        ("truth", "returned the match (True, 2)"),
        ("broken", "in broken: def broken"),
        ("asks", "its parameter `prompts`"),
        ("awaited", "is a coroutine function"),
        ("absent", "has no 'absent'"),
    ],
)
def test_a_function_that_builds_no_pairs_is_refused(module: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        try_pairs(load_pairs(f"{module}:{name}"))
    assert said in str(refused.value)


@pytest.mark.thorough
def test_check_tries_it_in_a_process_of_its_own(module: str) -> None:
    try_apart(f"{module}:adjacent")
    with pytest.raises(ConfigError, match="which stood before"):
        try_apart(f"{module}:twice")


def test_a_name_that_is_no_builder_is_refused() -> None:
    with pytest.raises(ValidationError):
        PairsConfig(builder="best_wrst")


def test_another_code_is_another_stage(module: str, tmp_path: Path) -> None:
    def key(builder: str) -> str:
        labeling = LabelingConfig.model_validate(
            {"reward": {"classifier": "c"}, "pairs": {"builder": builder}}
        )
        table = Table(Folder(str(tmp_path)), {"fingerprint": "f"})
        place = Place(Folder(str(tmp_path / "p")), "test")
        return preferences_stage(place, table, table, labeling, ModelConfig(path="m")).key

    own, shipped = key(f"{module}:adjacent"), key("all_pairs")
    (tmp_path / f"{module}.py").write_text(SOURCE + "\n# another\n")
    assert key(f"{module}:adjacent") != own
    assert key("all_pairs") == shipped
