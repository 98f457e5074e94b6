"""Operations on a store that throttles, drops connections or is slow: retried, complete,
reported.
"""

from __future__ import annotations

import logging
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from raydpo.core import retrying, storage
from raydpo.core.errors import StorageError
from raydpo.core.retrying import RetryingHandler
from raydpo.core.storage import Folder

#: As pyarrow words them for S3.
THROTTLED = "When reading information for key 'x': AWS Error SLOW_DOWN during GetObject operation: (HTTP status 503)"
DROPPED = "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 56, Failure when receiving data"
DENIED = "AWS Error ACCESS_DENIED during PutObject operation: (HTTP status 403)"
CONTENT = bytes(range(256)) * 8192


class Stream:
    """A file of the store, each of whose reads or writes may fail, too, and gives a part only."""

    def __init__(self, inner: Any, store: FlakyFileSystem) -> None:
        self.inner, self.store = inner, store

    def read(self, size: int = -1) -> bytes:
        self.store.fail()
        return self.inner.read(min(size, 100_000))

    def write(self, content: bytes) -> int:
        self.store.fail()
        return self.inner.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()


class FlakyFileSystem:
    """What the handler asks of a file system, with failures at every step."""

    type_name = "flaky"

    def __init__(self, folder: Path, share: float, seed: int, text: str = THROTTLED) -> None:
        self.inner: Any = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.draw, self.share, self.text = random.Random(seed), share, text
        self.failed = 0

    def fail(self) -> None:
        if self.draw.random() < self.share:
            self.failed += 1
            raise OSError(self.text)

    def open_input_file(self, path: str) -> Any:
        self.fail()
        return Stream(self.inner.open_input_file(path), self)

    def open_output_stream(self, path: str, metadata: Any = None) -> Any:
        self.fail()
        self.inner.create_dir(path.rpartition("/")[0], recursive=True)
        return Stream(self.inner.open_output_stream(path), self)

    def __getattr__(self, name: str) -> Any:
        if name != "normalize_path":  # which asks the store for nothing
            self.fail()
        return getattr(self.inner, name)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time here."""
    found: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", found.append)
    return found


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> FlakyFileSystem:
    """Folders of `flaky://` URIs lie in a store that fails 30 % of its operations."""
    store = FlakyFileSystem(tmp_path, 0.3, seed=1)
    handler: Any = RetryingHandler(store, "flaky")
    filesystem = pafs.PyFileSystem(handler)
    monkeypatch.setattr(storage, "locate", lambda uri: (filesystem, uri.removeprefix("flaky://")))
    return store


def test_every_operation_survives_a_store_that_fails(flaky: FlakyFileSystem, tmp_path) -> None:
    folder = Folder("flaky://bucket/run")
    for number in range(10):
        folder.write_bytes(f"deep/{number}.bin", CONTENT[number:])
    assert folder.files(recursive=True) == {f"deep/{n}.bin": len(CONTENT) - n for n in range(10)}
    for number in range(10):
        assert folder.read_bytes(f"deep/{number}.bin") == CONTENT[number:]
        assert folder.sha256(f"deep/{number}.bin") == storage.sha256(CONTENT[number:])
        assert folder.exists(f"deep/{number}.bin")
    local = tmp_path / "local"
    folder.download(local)
    assert (local / "deep/3.bin").read_bytes() == CONTENT[3:]
    folder.child("again").upload(local)
    assert folder.child("again", "deep").read_bytes("4.bin") == CONTENT[4:]
    folder.delete("deep/0.bin")
    assert not folder.is_file("deep/0.bin")
    folder.delete()
    assert folder.files(recursive=True) == {}
    assert flaky.failed > 50


def test_a_write_that_its_caller_gives_up_leaves_nothing(flaky: FlakyFileSystem) -> None:
    folder = Folder("flaky://bucket/run")

    def half() -> None:
        with folder._writer("half.bin") as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert not folder.exists("half.bin")


def test_arrow_copies_through_it_as_ray_train_does(flaky: FlakyFileSystem, tmp_path) -> None:
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "__0_0.distcp").write_bytes(CONTENT)
    filesystem, _ = storage.locate("flaky://x")
    pafs.copy_files(str(source), "bucket/checkpoint", pafs.LocalFileSystem(), filesystem)
    (tmp_path / "back").mkdir()
    pafs.copy_files("bucket/checkpoint", str(tmp_path / "back"), filesystem, pafs.LocalFileSystem())
    assert (tmp_path / "back/__0_0.distcp").read_bytes() == CONTENT


@pytest.mark.parametrize("text", [THROTTLED, DROPPED, "timed out"])
def test_a_store_that_does_not_come_back_is_named_without_its_credentials(
    flaky: FlakyFileSystem, waits: list[float], caplog: pytest.LogCaptureFixture, text: str
) -> None:
    flaky.share, flaky.text = 1.0, text
    with (
        caplog.at_level(logging.WARNING, "raydpo"),
        pytest.raises(StorageError) as caught,
    ):
        Folder("flaky://user:hunter22@bucket/run").read_bytes("manifest.json")
    assert "bucket/run/manifest.json could not be reached in 8 attempts" in caught.value.value
    assert text[:40] in caught.value.value
    assert "hunter22" not in str(caught.value) + caplog.text
    limits = [0.5, 1, 2, 4, 8, 16, 20]
    assert len(waits) == len(limits)
    assert all(0 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert len(set(waits)) == len(waits)  # drawn, so that many workers do not come back at once
    assert "tried 3 times in 0 s, and again" in caplog.text


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), OSError(DENIED)])
def test_what_will_not_pass_is_not_tried_again(error: OSError, waits: list[float]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        retrying.retried(fail, "s3://bucket/x")
    assert caught.value is error
    assert waits == []


def test_a_slow_store_is_given_up_after_a_while(monkeypatch, waits: list[float]) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(retrying.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(StorageError, match="in 2 attempts, 200 s"):
        retrying.retried(lambda: (_ for _ in ()).throw(TimeoutError("slow")), "s3://bucket/x")


def test_the_error_is_one_of_the_operating_system_and_pickles() -> None:
    error = StorageError("value", "rule", "way out")
    error.add_note("where: there")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, OSError)
    assert str(again) == str(error) == "value\n  rule: rule\n  way out: way out"
    assert again.__notes__ == ["where: there"]
    assert again.args == ("value", "rule", "way out")


def test_the_file_system_pickles_with_its_store() -> None:
    pytest.importorskip("fsspec")
    filesystem, path = storage.locate("memory://bucket/run")
    again = pickle.loads(pickle.dumps(filesystem))
    assert again == filesystem
    assert isinstance(storage._handler_of(again), RetryingHandler)
    assert path.endswith("bucket/run")
