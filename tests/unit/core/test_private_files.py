"""Files under the temporary folder: complete, ours alone, and cleaned up."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from raydpo.core import private_files
from raydpo.core.errors import RunError
from raydpo.core.private_files import clean, kept, private_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"raydpo-{os.getuid()}"


def writes(content: bytes):
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def never(path: Path) -> None:
    raise AssertionError(f"{path} was made again")


def test_a_whole_file_is_made_once_for_its_owner_alone(folder: Path) -> None:
    umask = os.umask(0)
    try:
        path = kept("groups-a", writes(b"one"))
    finally:
        os.umask(umask)
    assert kept("groups-a", never) == path
    assert path.read_bytes() == b"one"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in folder.iterdir() if p.name.startswith("partial")] == []


@pytest.mark.parametrize("damage", [b"onf", b"on", b""])
def test_a_changed_or_cut_file_is_named_and_made_again(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    caplog.set_level("WARNING", "raydpo")
    path = kept("groups-a", writes(b"one"))
    path.write_bytes(damage)
    assert kept("groups-a", writes(b"one")).read_bytes() == b"one"
    assert f"{path} was changed since it was written" in caplog.text


def test_a_changed_file_of_a_kept_folder_is_seen(folder: Path) -> None:
    def model(path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_bytes(b"weights")

    path = kept("model-a", model)
    (path / "model.safetensors").write_bytes(b"weightz")
    assert (kept("model-a", model) / "model.safetensors").read_bytes() == b"weights"


def test_a_maker_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        kept("groups-a", fail)
    assert [p.name for p in folder.iterdir()] == ["groups-a.lock"]


def test_a_folder_that_others_can_write_into_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RunError, match="others can write into it"):
        private_folder()


def test_a_link_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is no folder"):
        private_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(RunError, match="belongs to the user 12345"):
        private_folder()


def test_a_folder_that_others_could_only_read_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    assert private_folder().stat().st_mode & 0o777 == 0o700


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    for one in (path, path.with_name(f"{path.name.partition('.')[0]}.lock")):
        if one.exists():
            os.utime(one, (then, then))


def kept_elsewhere(name: str, folder: Path, size: int = 3) -> Path:
    """A file that a process made which has ended."""
    program = (
        "import sys, tempfile, pathlib; tempfile.tempdir = sys.argv[1]\n"
        "from raydpo.core.private_files import kept\n"
        "print(kept(sys.argv[2], lambda p: p.write_bytes(b'x' * int(sys.argv[3]))))"
    )
    arguments = [str(folder.parent), name, str(size)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


@pytest.mark.thorough
def test_what_nobody_used_for_days_is_removed_and_what_is_in_use_stays(folder: Path) -> None:
    mine = kept("groups-mine", writes(b"one"))
    old, new = kept_elsewhere("groups-old", folder), kept_elsewhere("groups-new", folder)
    begun = folder / "partial-begun"
    begun.mkdir()
    for path in (mine, old, begun):
        age(path, private_files.UNUSED_DAYS + 1)
    clean(folder)
    assert mine.exists()
    assert new.exists()
    assert not old.exists()
    assert not begun.exists()
    assert not (folder / "groups-old.lock").exists()


@pytest.mark.thorough
def test_the_longest_unused_go_first_where_there_is_no_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [kept_elsewhere(f"groups-{day}", folder, size=1000) for day in (1, 2, 3)]
    for days, file in enumerate(files, start=1):
        age(file, days)
    total = private_files.shutil.disk_usage(folder).total
    monkeypatch.setattr(private_files, "DISK_FRACTION", 1500 / total)
    clean(folder)
    assert [file.exists() for file in files] == [True, False, False]


def test_what_other_processes_remove_meanwhile_is_no_error(folder: Path) -> None:
    """Train workers on one node write their groups, and end, while others clean."""
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            file, tree = folder / "groups-x.0123", folder / "model-x.4567"
            (folder / "groups-x.lock").touch()
            file.write_bytes(b"rows")
            tree.mkdir(exist_ok=True)
            (tree / "weights").write_bytes(b"w")
            file.unlink(missing_ok=True)
            (tree / "weights").unlink()
            tree.rmdir()
            (folder / "groups-x.lock").unlink(missing_ok=True)

    private_folder()
    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(2_000):
            clean(folder)
    finally:
        done.set()
        other.join()
