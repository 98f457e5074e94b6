"""Replaced finished work is set aside; only `raydpo clean` deletes it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from raydpo.cli import main
from raydpo.core.lock import locked
from raydpo.core.run import commit_files, open_stage
from raydpo.core.set_aside import all_set_aside
from raydpo.core.storage import Folder, folder_of
from raydpo.show.listing import show_run
from tests.unit.core.test_run import finish, stage_in


def other(folder: Folder):
    return replace(stage_in(folder), settings={"another": 1})


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A run directory in a local folder and in an object store."""
    place = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    folder = folder_of(place).child("run")
    folder.write_bytes("config.yaml", b"name: run\n")
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name in folder.files(recursive=True)}


@pytest.mark.parametrize("manifest", ["of other settings", "lost"])
def test_a_finished_stage_is_set_aside_whole_and_the_log_says_where(
    run: Folder, caplog: pytest.LogCaptureFixture, manifest: str
) -> None:
    caplog.set_level("INFO", "raydpo")
    folder = run.child("round-000", "examples")
    finish(stage_in(folder))
    if manifest == "lost":
        folder.delete("manifest.json")
    before = contents(folder)
    assert open_stage(other(folder)) is None
    assert list(folder.files(recursive=True)) == ["plan.json"]
    (aside,) = all_set_aside(run)
    assert contents(aside.folder) == before
    assert aside.size_bytes == sum(map(len, before.values()))
    assert f"finished work is set aside in {aside.folder.uri}" in caplog.text


def test_a_stage_that_was_only_begun_is_deleted(run: Folder) -> None:
    folder = run.child("round-000", "examples")
    open_stage(stage_in(folder))
    folder.write_bytes("part-00000.parquet", b"half")
    open_stage(other(folder))
    assert list(folder.files(recursive=True)) == ["plan.json"]
    assert not all_set_aside(run)


def test_stages_inside_a_stage_that_is_set_aside_stay_where_they_are(run: Folder) -> None:
    folder = run.child("round-000", "evaluation")
    stage = replace(stage_in(folder), table=None)
    open_stage(stage, keep_folders=True)
    folder.write_bytes("report.html", b"the former")
    commit_files(stage, "content")
    folder.write_bytes("candidates/manifest.json", b"of another stage")
    open_stage(replace(stage, settings={"another": 1}), keep_folders=True)
    assert sorted(folder.files(recursive=True)) == ["candidates/manifest.json", "plan.json"]
    (aside,) = all_set_aside(run)
    assert sorted(aside.folder.files(recursive=True)) == ["manifest.json", "report.html"]


def test_what_is_set_aside_in_the_same_second_gets_names_of_its_own(run: Folder) -> None:
    folder = run.child("round-000", "examples")
    for settings in range(3):
        finish(replace(stage_in(folder), settings={"number": settings}))
        open_stage(other(folder))
    found = all_set_aside(run)
    assert len({one.folder.uri for one in found}) == 3
    assert all(one.folder.exists("manifest.json") for one in found)


def test_clean_deletes_what_is_set_aside_and_nothing_else(
    run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.child("round-000", "examples")
    finish(stage_in(folder))
    open_stage(other(folder))
    finish(other(folder))
    kept = contents(folder)
    run.write_bytes("round-000/notes.set-aside-by-me/a.txt", b"somebody's own")
    (aside,) = all_set_aside(run)
    assert main(["clean", run.uri, "--dry-run"]) == 0
    assert f"set aside: {aside.folder.uri}: 6 file(s)" in capsys.readouterr().out
    assert all_set_aside(run) == [aside]
    assert main(["clean", run.uri]) == 0
    assert f"deleted: {aside.folder.uri}" in capsys.readouterr().out
    assert not all_set_aside(run)
    assert contents(folder) == kept
    assert run.exists("round-000/notes.set-aside-by-me/a.txt")
    assert main(["clean", run.uri]) == 0
    assert capsys.readouterr().out == "nothing is set aside\n"


def test_clean_refuses_a_folder_that_is_no_run_and_a_run_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean", str(tmp_path)]) == 1
    assert "is not a run directory" in capsys.readouterr().err
    run = Folder(str(tmp_path / "run"))
    run.write_bytes("config.yaml", b"name: run\n")
    with locked(run):
        assert main(["clean", run.uri]) == 1
    assert "is in use by process" in capsys.readouterr().err


def test_show_names_what_is_set_aside_in_a_line_of_its_own(run: Folder) -> None:
    folder = run.child("round-000", "examples")
    finish(stage_in(folder))
    open_stage(other(folder))
    (aside,) = all_set_aside(run)
    lines = list(show_run(run.uri, 1))
    assert f"\nset aside, `raydpo clean {run.uri}` deletes it: {aside}" in lines
    assert "\nround-000/examples: begun, not finished" in lines
    assert not any("set-aside" in line and "done" in line for line in lines)
