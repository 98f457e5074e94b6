"""Stages in parts on a real Ray cluster: errors of workers arrive as they were raised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sampling_tables import make_prompts

from raydpo.core.errors import ClusterError, ModelError
from raydpo.core.parts import PartJob, PartStage, Transform, Workers, part_work, run_work
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, finished_parts
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("where", ["constructor", "transform"])
def test_an_error_in_a_worker_arrives_as_it_was_raised(
    ray_cluster: None, tmp_path: Path, where: str
) -> None:
    def make_transform() -> Transform:
        if where == "constructor":
            raise ModelError("constructor", "rule", "way out")

        def transform(rows: list[Row]) -> PartResult:
            raise ModelError("transform", "rule", "way out")

        return transform

    prompts = make_prompts(tmp_path / "p", [("a", [1]), ("b", [2])], rows_per_part=1)
    stage = Stage(Place(folder_of(str(tmp_path / "c")), "test"), "prompts", "prompts", {}, {})
    job = PartJob(make_transform, Workers(1), where)
    work = part_work([PartStage(stage, [prompts])], job)
    with pytest.raises(ModelError) as caught:
        run_work(work)
    assert caught.value.value == where


def test_processes_use_what_they_made_in_the_next_stage_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    made = tmp_path / "made"

    def make_transform() -> Transform:
        with open(made, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return lambda rows: PartResult(rows)

    prompts = make_prompts(tmp_path / "p", [(str(n), [n]) for n in range(4)], rows_per_part=1)
    job = PartJob(make_transform, Workers(1), identity="prompts as they are")
    for name in ("first", "second"):
        stage = Stage(
            Place(folder_of(str(tmp_path / name)), "test"), "prompts", "prompts", {}, {"name": name}
        )
        [table] = run_work(part_work([PartStage(stage, [prompts])], job))
        assert table.fingerprint == prompts.fingerprint
    processes = made.read_text().split()
    assert len(processes) == len(set(processes))


def test_a_part_that_ends_its_process_each_time_is_given_up(
    ray_cluster: None, tmp_path: Path
) -> None:
    def make_transform() -> Transform:
        def transform(rows: list[Row]) -> PartResult:
            if rows[0]["prompt_id"] == "b":
                os._exit(1)
            return PartResult(rows)

        return transform

    prompts = make_prompts(tmp_path / "p", [("a", [1]), ("b", [2])], rows_per_part=1)
    stage = Stage(Place(folder_of(str(tmp_path / "c")), "test"), "prompts", "prompts", {}, {})
    job = PartJob(make_transform, Workers(1), "ends its process")
    work = part_work([PartStage(stage, [prompts])], job)
    for _ in range(2):  # a new run counts from the beginning
        with pytest.raises(ClusterError, match="part-00001 was begun 5 times") as caught:
            run_work(work)
        assert caught.value.value.count("process ") == 6
    assert finished_parts(stage).keys() == {0}
