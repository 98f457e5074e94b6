"""Files are complete or absent, and equal content has equal bytes."""

import os
import tracemalloc
from pathlib import Path

import pytest

from raydpo.core.errors import DataError
from raydpo.core.lock import locked
from raydpo.core.storage import (
    Folder,
    canonical_json,
    folder_of,
    parquet_bytes,
    sha256,
    table_from_parquet,
)
from raydpo.core.tables import EXAMPLES, check_table, table_from_rows


def test_files_of_nested_folders_are_listed_with_sizes(tmp_path) -> None:
    folder = folder_of(str(tmp_path))
    folder.write_bytes("a/b/c.bin", b"123")
    folder.write_bytes("d.bin", b"")
    assert folder.files(recursive=True) == {"a/b/c.bin": 3, "d.bin": 0}
    assert folder.child("a").files() == {}
    assert folder.child("absent").files() == {}


def test_failed_write_leaves_the_old_content_and_nothing_else(tmp_path) -> None:
    folder = folder_of(str(tmp_path))
    folder.write_bytes("file", b"old")
    with pytest.raises(TypeError):
        folder.write_bytes("file", "not bytes")  # type: ignore[arg-type]
    assert folder.read_bytes("file") == b"old"
    assert list(folder.files()) == ["file"]


def test_folders_move_up_and_down_with_their_content(tmp_path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x").write_bytes(b"x")
    folder = folder_of(str(tmp_path / "stored"))
    folder.upload(source)
    folder.download(tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "x").read_bytes() == b"x"
    folder.delete()
    assert not folder.exists()
    folder.delete()


def test_a_large_file_passes_through_memory_in_blocks(tmp_path) -> None:
    source, size = tmp_path / "source", 64 << 20
    source.mkdir()
    (source / "weights").write_bytes(bytes(size))
    folder = folder_of(str(tmp_path / "stored"))
    tracemalloc.start()
    folder.upload(source)
    digest = folder.sha256("weights")
    folder.download(tmp_path / "back")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 4
    assert digest == sha256(bytes(size))
    assert (tmp_path / "back" / "weights").read_bytes() == bytes(size)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(DataError, match="scheme"):
        Folder("nosuch://bucket/folder").files()


def test_equal_rows_give_equal_bytes_and_read_back(tmp_path) -> None:
    rows = [{"example_id": "é", "token_ids": [1, 2], "prompt_tokens": 0}]
    content = parquet_bytes(table_from_rows(rows, EXAMPLES))
    assert content == parquet_bytes(table_from_rows(rows, EXAMPLES))
    table = table_from_parquet(content, "here")
    check_table(table, EXAMPLES, "here")
    assert table.to_pylist() == rows
    with pytest.raises(DataError, match="here is not a whole Parquet file"):
        table_from_parquet(content[:-1], "here")


def test_rows_that_break_the_schema_are_refused() -> None:
    good = {"example_id": "a", "token_ids": [1], "prompt_tokens": 0}
    for bad in (
        {**good, "extra": 1},
        {"example_id": "a"},
        {**good, "token_ids": ["x"]},
        {**good, "example_id": None},
    ):
        with pytest.raises(DataError):
            table_from_rows([good, bad], EXAMPLES)


def test_canonical_json_knows_no_key_order() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == canonical_json({"a": [1.5, None], "b": 1})


@pytest.mark.parametrize(
    ("shared", "folder_mode", "file_mode"), [(0o755, 0o700, 0o600), (0o2770, 0o2770, 0o660)]
)
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_are_the_owner_s_or_the_group_s_whatever_the_umask_is(
    tmp_path: Path, shared: int, folder_mode: int, file_mode: int, umask: int
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(shared)
    run = folder_of(str(tmp_path / "runs" / "one"))
    before = os.umask(umask)
    try:
        with locked(run):
            run.child("round-000", "prompts").write_bytes("part", b"")
    finally:
        os.umask(before)
    for name in ("", "round-000", "round-000/prompts"):
        assert run.local_path(name).stat().st_mode & 0o7777 == folder_mode
    assert run.local_path("round-000/prompts/part").stat().st_mode & 0o777 == file_mode
