"""Chains of stages on a real Ray cluster: parts flow on, and the tables are those of stages in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sampling_tables import make_prompts, rows_of

from raydpo.core.chain import Chain
from raydpo.core.errors import DataError, QuarantineBudgetError
from raydpo.core.parts import (
    PartJob,
    PartStage,
    PartWork,
    Table,
    Transform,
    Workers,
    part_work,
    run_work,
)
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, part_name, write_part
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row

pytestmark = pytest.mark.slow
PARTS = 4


@pytest.fixture
def prompts(tmp_path: Path) -> Table:
    return make_prompts(tmp_path / "p", [(str(n), [n]) for n in range(PARTS)], rows_per_part=1)


def work(folder: Path, name: str, source: Table, transform: Transform) -> PartWork:
    """A stage whose part i is made from part i of `source`.

    Each name holds another share of a CPU: Ray Data makes one stage of two that hold the same.
    """
    cpus = 0.2 + sum(map(ord, name)) % 97 / 1000
    inputs = {"source": source.fingerprint}
    stage = Stage(
        Place(folder_of(str(folder / name)), "test"), name, "prompts", inputs, {}, ("source",)
    )
    job = PartJob(lambda: transform, Workers(2, cpus=cpus), identity=str(folder / name))
    return part_work([PartStage(stage, [source])], job)


def marked(mark: str) -> Transform:
    return lambda rows: PartResult([{**row, "prompt": row["prompt"] + mark} for row in rows])


def in_turn(folder: Path, prompts: Table, *transforms: tuple[str, Transform]) -> list[Table]:
    """The tables of stages that are brought to their end one after the other."""
    tables = [prompts]
    for name, transform in transforms:
        tables.append(run_work(work(folder, name, tables[-1], transform))[0])
    return tables[1:]


def in_a_chain(folder: Path, prompts: Table, *transforms: tuple[str, Transform]) -> None:
    chain, table = Chain("test"), prompts
    for name, transform in transforms:
        table = chain.add(work(folder, name, table, transform))
    chain.run()


def logged(path: Path, transform: Transform) -> Transform:
    """The transform, with a line in a file for each part."""

    def write(rows: list[Row]) -> PartResult:
        with open(path, "a", encoding="utf-8") as file:
            file.write("part\n")
        return transform(rows)

    return write


def test_a_chain_ends_once_its_first_stage_has_refused_too_much(
    ray_cluster: None, prompts: Table, tmp_path: Path
) -> None:
    """The part that refuses comes third; the fourth waits for a file that never comes."""

    wait = waits_for(tmp_path / "never", PARTS - 1)
    others = waits_for(tmp_path / "late" / part_name(2), 1)

    def refuses(rows: list[Row]) -> PartResult:
        if rows[0]["prompt_id"] != "1":
            return wait(rows)
        others(rows)
        refused = {"stage": "refusing", "id": "1", "reason": "why not", "row": "{}"}
        return PartResult([], [refused])

    started = time.monotonic()
    with pytest.raises(QuarantineBudgetError, match="refused 1 of 4 rows"):
        in_a_chain(tmp_path, prompts, ("refusing", refuses), ("late", marked("!")))
    assert time.monotonic() - started < 170
    assert not (tmp_path / "refusing/manifest.json").exists()


def waits_for(path: Path, number: int) -> Transform:
    """Passes rows on, that of one prompt only once a file is there."""

    def wait(rows: list[Row]) -> PartResult:
        deadline = time.monotonic() + 180
        while rows[0]["prompt_id"] == str(number) and not path.exists():
            if time.monotonic() > deadline:
                raise DataError(f"no {path.name} in 180 s", "parts flow on", "")
            time.sleep(0.01)
        return PartResult(rows)

    return wait


def test_a_part_is_labelled_while_a_later_one_is_still_sampled(
    ray_cluster: None, tmp_path: Path, prompts: Table
) -> None:
    first_label = tmp_path / "c" / "label" / part_name(0)
    stages = (("sample", waits_for(first_label, PARTS - 1)), ("label", marked("!")))
    in_a_chain(tmp_path / "c", prompts, *stages)
    assert first_label.exists()
    assert not (tmp_path / "c" / "sample" / "manifest.json").exists()


def test_a_chain_makes_the_tables_of_stages_in_turn_and_leaves_them_nothing_to_make(
    ray_cluster: None, tmp_path: Path, prompts: Table
) -> None:
    stages = (("sample", marked("a")), ("label", marked("b")), ("score", marked("c")))
    expected = in_turn(tmp_path / "turn", prompts, *stages)
    made = tmp_path / "made"
    counted = [(name, logged(made, transform)) for name, transform in stages]
    in_a_chain(tmp_path / "chain", prompts, *counted)
    found = in_turn(tmp_path / "chain", prompts, *counted)
    assert len(made.read_text().split()) == 3 * PARTS
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.fingerprint == theirs.fingerprint
        assert ours.manifest["key"] == theirs.manifest["key"]


def fails_once_at(path: Path, number: int, transform: Transform) -> Transform:
    def fail(rows: list[Row]) -> PartResult:
        if rows[0]["prompt_id"] == str(number) and not path.exists():
            path.touch()
            raise DataError("the second stage fails", "once", "")
        return transform(rows)

    return fail


@pytest.mark.parametrize("go_on", [in_turn, in_a_chain])
def test_a_chain_that_failed_goes_on_where_it_was(
    ray_cluster: None, tmp_path: Path, prompts: Table, go_on: Callable[..., object]
) -> None:
    made = tmp_path / "made"
    failing = fails_once_at(tmp_path / "failed", PARTS - 1, logged(made, marked("b")))
    stages = (("sample", marked("a")), ("label", failing))
    with pytest.raises(DataError, match="second stage"):
        in_a_chain(tmp_path / "c", prompts, *stages)
    go_on(tmp_path / "c", prompts, *stages)
    [_, table] = in_turn(tmp_path / "c", prompts, *stages)
    assert [row["prompt"] for row in rows_of(table)] == [f"[{n}]ab" for n in range(PARTS)]
    assert PARTS <= len(made.read_text().split()) < 2 * PARTS


def test_a_part_whose_source_came_out_otherwise_is_made_again_and_no_other(
    ray_cluster: None, tmp_path: Path, prompts: Table
) -> None:
    made = tmp_path / "made"
    stages = (("sample", marked("a")), ("label", logged(made, marked("b"))))
    in_a_chain(tmp_path / "c", prompts, *stages)
    [sample] = work(tmp_path / "c", "sample", prompts, marked("a")).stages
    other = [{**row, "prompt": "other"} for row in prompts.part(2)]
    made_from = [prompts.part_hashes()[2]]
    write_part(sample.stage, 2, PartResult(other, counts={"input": 1}), made_from)
    [_, table] = in_turn(tmp_path / "c", prompts, *stages)
    assert [row["prompt"] for row in rows_of(table)] == ["[0]ab", "[1]ab", "otherb", "[3]ab"]
    assert len(made.read_text().split()) == PARTS + 1


def test_a_chain_ends_before_a_finished_stage_whose_source_is_made_again(
    ray_cluster: None, tmp_path: Path, prompts: Table
) -> None:
    stages = (("sample", marked("a")), ("label", marked("b")), ("score", marked("c")))
    tables = in_turn(tmp_path, prompts, *stages)
    kept = {table.folder.uri: table.manifest for table in tables[1:]}
    tables[0].folder.delete()
    made = tmp_path / "made"
    again = [stages[0], *((name, logged(made, transform)) for name, transform in stages[1:])]
    in_a_chain(tmp_path, prompts, *again)
    found = in_turn(tmp_path, prompts, *again)
    assert not made.exists()  # the same parts came out again: nothing after them is stale
    assert {table.folder.uri: table.manifest for table in found[1:]} == kept
