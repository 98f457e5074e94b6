"""The run directory: finished work stays, stale or damaged work is noticed."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from raydpo.core.errors import DataError, ManifestError, RunLockedError
from raydpo.core.lock import locked
from raydpo.core.place import Place
from raydpo.core.run import (
    PartResult,
    Stage,
    commit,
    finished_parts,
    open_stage,
    read_manifest,
    read_part,
    read_quarantine,
    read_rows,
    write_part,
)
from raydpo.core.storage import Folder, folder_of


def stage_in(folder: Folder, **settings: object) -> Stage:
    return Stage(
        Place(folder, "test"), "examples", "examples", {"source": "abc"}, {"limit": 3, **settings}
    )


def result(number: int, refused: int = 0) -> PartResult:
    rows = [
        {"example_id": f"{number}-{i}", "token_ids": [number, i], "prompt_tokens": 0}
        for i in range(3)
    ]
    quarantined = [
        {"stage": "examples", "id": f"bad-{number}-{i}", "reason": "empty", "row": "{}"}
        for i in range(refused)
    ]
    return PartResult(rows, quarantined, {"input": 3 + refused})


@pytest.fixture
def folder(tmp_path) -> Folder:
    return folder_of(str(tmp_path / "run" / "examples"))


def finish(stage: Stage, parts: int = 3) -> dict:
    assert open_stage(stage) is None
    for index in range(parts):
        write_part(stage, index, result(index, refused=index))
    return commit(stage, {}, parts=parts)


def test_finished_stage_is_read_back_in_order_with_its_counts(folder) -> None:
    manifest = finish(stage_in(folder))
    assert manifest["counts"] == {"input": 12, "output": 9, "quarantined": 3}
    ids = [row["example_id"] for row in read_rows(folder, manifest)]
    assert ids == [f"{part}-{i}" for part in range(3) for i in range(3)]
    refused = [row["id"] for row in read_quarantine(folder, manifest)]
    assert refused == ["bad-1-0", "bad-2-0", "bad-2-1"]
    assert open_stage(stage_in(folder)) == manifest


def test_interrupted_stage_keeps_its_whole_parts_and_ends_with_the_same_fingerprint(
    folder, tmp_path
) -> None:
    undisturbed = finish(stage_in(folder_of(str(tmp_path / "other"))))
    stage = stage_in(folder)
    open_stage(stage)
    write_part(stage, 2, result(2, refused=2))
    folder.write_bytes("part-00001.parquet", b"written, but its record is not there")
    assert open_stage(stage) is None
    assert list(finished_parts(stage)) == [2]
    for index in (0, 1):
        write_part(stage, index, result(index, refused=index))
    assert commit(stage, {}, parts=3)["fingerprint"] == undisturbed["fingerprint"]


def flowing(folder: Folder, source: str) -> Stage:
    """A stage whose parts are made from those of a source that may still be made itself."""
    return Stage(
        Place(folder, "test"), "examples", "examples", {"source": source}, {}, parts_of=("source",)
    )


def test_stage_begun_before_its_source_was_finished_goes_on_when_it_is(folder) -> None:
    begun = flowing(folder, "")
    open_stage(begun)
    for index in range(2):
        write_part(begun, index, result(index), made_from=[f"hash {index}"])
    finished = flowing(folder, "abc")
    assert finished.key != begun.key
    assert open_stage(finished) is None
    assert list(finished_parts(finished, {0: ["hash 0"], 1: ["hash 1"]})) == [0, 1]
    manifest = commit(finished, {})
    assert manifest["inputs"] == {"source": "abc"}
    assert open_stage(finished) == manifest
    assert open_stage(flowing(folder, "other")) is None  # once finished, it is bound to its source


def test_parts_made_from_other_parts_than_those_there_are_taken_away(folder) -> None:
    stage = flowing(folder, "")
    open_stage(stage)
    for index in range(3):
        write_part(stage, index, result(index, refused=1), made_from=[f"hash {index}"])
    now = {0: ["hash 0"], 1: ["another"]}  # and part 2 has no source any more
    assert list(finished_parts(stage, now)) == [0]
    assert set(folder.files(recursive=True)) == {
        "plan.json",
        "_parts/00000.json",
        "part-00000.parquet",
        "quarantine/part-00000.parquet",
    }


def test_commit_refuses_a_stage_with_a_missing_part(folder) -> None:
    stage = stage_in(folder)
    open_stage(stage)
    write_part(stage, 0, result(0))
    with pytest.raises(DataError, match="all of its 2 parts"):
        commit(stage, {}, parts=2)
    assert read_manifest(folder) is None


def test_commit_refuses_a_part_that_was_cut_after_it_was_written(folder) -> None:
    stage = stage_in(folder)
    open_stage(stage)
    write_part(stage, 0, result(0))
    folder.local_path("part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="all of its 1 parts"):
        commit(stage, {}, parts=1)
    assert finished_parts(stage) == {}


def test_refused_counts_leave_no_manifest(folder) -> None:
    stage = stage_in(folder)
    open_stage(stage)
    write_part(stage, 0, result(0))

    def refuse(counts: dict[str, int]) -> None:
        raise DataError(str(counts), "rule", "way out")

    with pytest.raises(DataError):
        commit(stage, {}, check=refuse)
    assert read_manifest(folder) is None
    assert list(finished_parts(stage)) == [0]


def test_changed_setting_makes_the_stage_stale_and_says_which(folder, caplog) -> None:
    finish(stage_in(folder))
    caplog.set_level("INFO", logger="raydpo")
    assert open_stage(stage_in(folder, limit=4)) is None
    assert "setting 'limit' changed" in caplog.text
    assert [name for name in folder.files() if name.endswith(".parquet")] == []


def test_begun_stage_of_other_settings_is_discarded(folder) -> None:
    stage = stage_in(folder)
    open_stage(stage)
    write_part(stage, 0, result(0))
    other = stage_in(folder, limit=4)
    assert open_stage(other) is None
    assert finished_parts(other) == {}


@pytest.mark.parametrize("cut", [0, 1, 0.5, -1])
def test_truncated_part_is_named(folder, cut) -> None:
    manifest = finish(stage_in(folder))
    path = folder.local_path("part-00001.parquet")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(DataError, match=r"part-00001\.parquet"):
        read_part(folder, manifest, 1)
    assert open_stage(stage_in(folder)) is None  # it is made again, and the others are kept
    assert sorted(finished_parts(stage_in(folder))) == [0, 2]


def test_flipped_byte_is_seen_when_the_part_is_read(folder) -> None:
    manifest = finish(stage_in(folder))
    path = folder.local_path("part-00000.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"part-00000\.parquet was changed"):
        read_part(folder, manifest, 0)


def test_damaged_part_of_an_interrupted_run_is_done_again(folder) -> None:
    stage = stage_in(folder)
    open_stage(stage)
    for index in range(2):
        write_part(stage, index, result(index))
    folder.local_path("part-00000.parquet").write_bytes(b"PAR1")
    assert list(finished_parts(stage)) == [1]


def test_damaged_manifest_is_refused_and_not_taken_for_nothing_done(folder) -> None:
    manifest = finish(stage_in(folder))
    path = folder.local_path("manifest.json")
    without_counts = {k: v for k, v in manifest.items() if k != "counts"}
    for damaged in (b"{", b"[]", json.dumps(without_counts).encode()):
        path.write_bytes(damaged)
        with pytest.raises(ManifestError, match=r"manifest\.json is damaged"):
            open_stage(stage_in(folder))


def test_parts_of_another_stage_in_the_same_folder_are_no_part_of_the_table(folder) -> None:
    mine, other = stage_in(folder), stage_in(folder, model="another")
    assert open_stage(mine) is None
    write_part(mine, 0, result(0))
    write_part(other, 1, result(7))  # as two drivers did in an object store without a lease
    assert list(finished_parts(mine)) == [0]
    with pytest.raises(DataError, match="has the parts"):
        commit(mine, {}, parts=2)
    write_part(mine, 1, result(1))
    manifest = commit(mine, {}, parts=2)
    assert [row["example_id"][0] for row in read_rows(folder, manifest)] == list("000111")


def test_a_file_system_without_locks_gets_a_lease(tmp_path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    run = folder_of(str(tmp_path))
    with locked(run):
        assert len(run.child("lease").files()) == 1
    assert not run.child("lease").files()


def test_second_run_in_a_directory_is_told_who_holds_it(tmp_path) -> None:
    run = folder_of(str(tmp_path))
    code = (
        "from raydpo.core.lock import locked; from raydpo.core.storage import folder_of; import sys\n"
        "with locked(folder_of(sys.argv[1])): pass"
    )
    with locked(run):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
        assert "RunLockedError" in done.stderr
        assert f"process {os.getpid()}" in done.stderr
        with pytest.raises(RunLockedError), locked(run):
            pass
    with locked(run):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path) -> None:
    code = (
        "from raydpo.core.lock import locked; from raydpo.core.storage import folder_of\n"
        "import os, signal, sys\n"
        "with locked(folder_of(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -9
    with locked(folder_of(str(tmp_path))):
        pass
