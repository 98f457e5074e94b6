"""raydpo makes damaged files of a finished stage again if that loses nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from raydpo.core.checked import write_checked
from raydpo.core.errors import DataError
from raydpo.core.run import (
    commit,
    commit_files,
    finished_parts,
    open_stage,
    read_manifest,
    write_part,
)
from raydpo.core.storage import Folder, folder_of, sha256
from tests.unit.core.test_run import finish, result, stage_in


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return folder_of(str(tmp_path / "run" / "examples"))


def flip(path: Path) -> tuple[str, str]:
    """Change one byte and keep the size; the hashes before and after."""
    before = path.read_bytes()
    middle = len(before) // 2
    after = before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]
    path.write_bytes(after)
    return sha256(before), sha256(after)


@pytest.mark.parametrize("name", ["part-00001.parquet", "quarantine/part-00001.parquet"])
def test_a_flipped_byte_costs_one_part_and_the_table_ends_as_it_was(
    folder: Folder, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("WARNING", "raydpo")
    undisturbed = finish(stage_in(folder))
    expected, found = flip(folder.local_path(name))
    assert open_stage(stage_in(folder)) is None
    assert f"{folder.uri}/{name} (expected {expected}, found {found})" in caplog.text
    assert sorted(finished_parts(stage_in(folder))) == [0, 2]
    write_part(stage_in(folder), 1, result(1, refused=1))
    again = commit(stage_in(folder), {}, parts=3)
    assert {**again, "committed_at": 0, "checksum": 0} == {
        **undisturbed,
        "committed_at": 0,
        "checksum": 0,
    }
    assert open_stage(stage_in(folder)) == again
    assert not folder.exists("manifest.former.json")


def test_each_damaged_file_is_named_with_its_hashes_and_those_after_five_are_counted(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    stage = replace(stage_in(folder), table=None)
    open_stage(stage)
    names = [f"model/{number}" for number in range(7)]
    for name in names:
        folder.write_bytes(name, name.encode() * 9)
    commit_files(stage, "same")
    changed = [(name, *flip(folder.local_path(name))) for name in names]
    open_stage(stage)
    for name, expected, found in changed[:5]:
        assert f"{name} (expected {expected}, found {found})" in caplog.text
    assert " and 2 more file(s)" in caplog.text


def test_a_missing_part_is_made_again_alone(folder: Folder) -> None:
    finish(stage_in(folder))
    folder.local_path("part-00002.parquet").unlink()
    assert open_stage(stage_in(folder)) is None
    assert sorted(finished_parts(stage_in(folder))) == [0, 1]


def test_a_part_that_comes_out_otherwise_is_refused(folder: Folder) -> None:
    finish(stage_in(folder))
    flip(folder.local_path("part-00001.parquet"))
    open_stage(stage_in(folder))
    write_part(stage_in(folder), 1, result(7, refused=1))
    for _ in range(2):  # the second command is told the same
        with pytest.raises(DataError, match=r"later stages were made from the former content"):
            commit(stage_in(folder), {}, parts=3)
        assert open_stage(stage_in(folder)) is None


def test_a_damaged_file_that_cannot_be_made_again_is_refused_and_nothing_is_changed(
    folder: Folder,
) -> None:
    manifest = finish(stage_in(folder))
    expected, found = flip(folder.local_path("part-00000.parquet"))
    with pytest.raises(DataError, match=r"but here the votes are gone") as refused:
        open_stage(stage_in(folder), refuse_to_mend=lambda names, _: "the votes are gone")
    assert expected in refused.value.value
    assert found in refused.value.value
    assert read_manifest(folder) == manifest


def test_a_damaged_file_of_a_manifest_without_part_records_is_refused(folder: Folder) -> None:
    manifest = finish(stage_in(folder))
    older = {k: v for k, v in manifest.items() if k not in ("part_records", "checksum")}
    write_checked(folder, "manifest.json", older)
    flip(folder.local_path("part-00000.parquet"))
    with pytest.raises(DataError, match="older version of raydpo"):
        open_stage(stage_in(folder))


def test_damaged_plain_files_are_made_again_and_compared(folder: Folder) -> None:
    stage = replace(stage_in(folder), table=None)
    assert open_stage(stage) is None
    folder.write_bytes("report.html", b"as it was")
    folder.write_bytes("tensorboard/events", b"read by no stage")
    commit_files(stage, "same")
    folder.write_bytes("tensorboard/events", b"changed")
    assert open_stage(stage) is not None
    folder.write_bytes("report.html", b"as it isn't")
    assert open_stage(stage) is None
    folder.write_bytes("report.html", b"as it was")
    with pytest.raises(DataError, match="has the fingerprint"):
        commit_files(stage, "other")
    commit_files(stage, "same")
    assert open_stage(stage) is not None
