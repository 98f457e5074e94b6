"""Files in a folder that may be local or in an object store.

From a path or a URI that pyarrow or fsspec understands, the module makes a picklable `Folder`
with atomic writes: a file is complete, or it does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raydpo.core.credentials import credential_in
from raydpo.core.errors import ConfigError, DataError, said_by
from raydpo.core.retrying import MOST_BYTES_IN_MEMORY, RetryingHandler

#: Large files, such as weights, pass through memory in blocks of this size.
_BLOCK_BYTES: Final = 1 << 22


@dataclass(frozen=True)
class Folder:
    """A folder, named by an absolute path or a URI."""

    uri: str

    def child(self, *names: str) -> Folder:
        """The folder `names` below this one; nothing is created."""
        return Folder("/".join([self.uri.rstrip("/"), *names]))

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's own file system."""
        return "://" not in self.uri

    def local_path(self, *names: str) -> Path:
        """The local path of a file in a local folder."""
        assert self.is_local, self.uri
        return Path(self.uri, *names)

    def exists(self, name: str = "") -> bool:
        """Whether the file `name`, or the folder itself, is there."""
        filesystem, path = self._locate(name)
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound

    def is_file(self, name: str) -> bool:
        """Whether `name` is there and is a file."""
        filesystem, path = self._locate(name)
        return filesystem.get_file_info(path).type == pafs.FileType.File

    def files(self, recursive: bool = False) -> dict[str, int]:
        """Names of the files in this folder, relative to it, with their sizes in bytes."""
        return {name: info.size for name, info in self._infos(recursive).items()}

    def modified(self) -> dict[str, int | None]:
        """Names of all files below, with the nanosecond of their last change where it is known."""
        return {name: info.mtime_ns for name, info in self._infos(recursive=True).items()}

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        filesystem, path = self._locate(name)
        with filesystem.open_input_stream(path) as stream:
            return stream.read()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically: a reader sees the old content or the new, never a part."""
        with self._writer(name) as stream:
            stream.write(content)

    def read_json(self, name: str) -> Any:
        """A JSON file's value.

        Raises:
            DataError: the file is not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.uri}/{name} is not JSON: {said_by(error)}",
                "files that raydpo wrote are whole",
                "it was damaged after it was written: restore it, or delete its folder",
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically, keys in the order given."""
        self.write_bytes(name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def delete(self, name: str = "") -> None:
        """Delete the file `name`, or the whole folder; no error where it is not there."""
        filesystem, path = self._locate(name)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)

    def move(self, target: Folder, name: str = "") -> None:
        """Move the file `name`, or the whole folder, into a folder of the same file system.

        Local ones are renamed at once. In an object store, all is copied before any is deleted.
        """
        filesystem, path = self._locate(name)
        _, end = target._locate(name)
        if isinstance(filesystem, pafs.LocalFileSystem):
            make_folders(Path(end).parent)
            Path(path).rename(end)
            return
        names = [name] if name else list(self.files(recursive=True))
        for file in names:
            try:
                read = filesystem.open_input_stream(self._locate(file)[1])
            except FileNotFoundError:
                if name:
                    raise
                continue  # a driver that lost its lease cleans up behind itself
            with read, target._writer(file) as out:
                shutil.copyfileobj(read, out, _BLOCK_BYTES)
        self.delete(name)

    def sha256(self, name: str) -> str:
        """Hexadecimal SHA-256 of a file of any size, a block in memory at a time."""
        filesystem, path = self._locate(name)
        digest = hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def upload(self, source: Path) -> None:
        """Copy the files of a local folder into this one; files of the same name are replaced."""
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            name = file.relative_to(source).as_posix()
            filesystem, path = self._locate(name)
            with open(file, "rb") as read:
                if isinstance(filesystem, pafs.LocalFileSystem):
                    with self._writer(name) as out:
                        shutil.copyfileobj(read, out, _BLOCK_BYTES)
                else:
                    _handler_of(filesystem).put(path, read)

    def download(self, target: Path) -> None:
        """Copy this folder's files, at any depth, into a local one."""
        for name in self.files(recursive=True):
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            filesystem, path = self._locate(name)
            with filesystem.open_input_stream(path) as read, open(file, "wb") as out:
                shutil.copyfileobj(read, out, _BLOCK_BYTES)

    def copy(self, name: str, target: Folder, new_name: str) -> None:
        """Copy a file of any size into another folder, where it is whole or not there."""
        filesystem, path = self._locate(name)
        with filesystem.open_input_stream(path) as read, target._writer(new_name) as out:
            shutil.copyfileobj(read, out, _BLOCK_BYTES)

    @contextlib.contextmanager
    def _writer(self, name: str) -> Generator[Any]:
        """A stream whose content is the file's once the block ends."""
        filesystem, path = self._locate(name)
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with tempfile.SpooledTemporaryFile(MOST_BYTES_IN_MEMORY) as stream:
                yield stream
                _handler_of(filesystem).put(path, stream)
            return
        target = Path(path)
        make_folders(target.parent)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as stream:
                os.fchmod(stream.fileno(), _mode_inside(target.parent) & 0o660)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError as error:
            if error.filename is None:  # a full disk does not say whose file it was
                error.filename = str(target)
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _infos(self, recursive: bool) -> dict[str, pafs.FileInfo]:
        filesystem, path = self._locate("")
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
        infos = [i for i in filesystem.get_file_info(selector) if i.is_file]
        return {i.path[len(path) :].lstrip("/"): i for i in sorted(infos, key=lambda i: i.path)}

    def _locate(self, name: str) -> tuple[pafs.FileSystem, str]:
        filesystem, path = locate(self.uri)
        return filesystem, f"{path.rstrip('/')}/{name}" if name else path


def make_folders(path: Path) -> None:
    """Make a folder, and those above it that are missing, whatever the umask is.

    A new folder is its owner's alone (0700). In one that is closed to others it takes that one's
    mode, so that a group shares what lies below a folder of mode 2770.
    """
    if path.is_dir():
        return
    make_folders(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(_mode_inside(path.parent))


def _mode_inside(folder: Path) -> int:
    mode = folder.stat().st_mode
    return 0o700 if mode & 0o007 else 0o700 | mode & 0o2770


def folder_of(path: str) -> Folder:
    """The folder of a path or URI; local paths become absolute.

    Raises:
        ConfigError: a URI holds a credential: it would be printed and saved.
    """
    if "://" in path and (kind := credential_in(path)):
        raise ConfigError(
            f"the URI {path} holds {kind}",
            "URIs are printed and saved, so they hold no credentials",
            "give it in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    # Unlike pathlib's, this leaves `~nobody` as it is where there is no such user.
    local = "://" not in path
    return Folder(str(Path(os.path.expanduser(path)).absolute()) if local else path)  # noqa: PTH111


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path of a URI or absolute path.

    Raises:
        DataError: neither pyarrow nor fsspec knows the scheme.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), uri
    scheme = uri.partition("://")[0]
    try:
        return _retrying(*pafs.FileSystem.from_uri(uri), scheme)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
        handler: Any = pafs.FSSpecHandler  # its stub calls it abstract
        return _retrying(pafs.PyFileSystem(handler(filesystem)), path, scheme)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{uri}: {error}",
            "a URI's scheme is one that pyarrow (s3, gs, hdfs) or an installed fsspec package reads",
            "install the fsspec package of that scheme, or copy the files to a known place",
        ) from error


def _handler_of(filesystem: pafs.FileSystem) -> RetryingHandler:
    """The handler behind a file system that `locate` returned, unless it is local."""
    assert isinstance(filesystem, pafs.PyFileSystem), filesystem
    handler = filesystem.handler
    assert isinstance(handler, RetryingHandler), handler
    return handler


def _retrying(filesystem: pafs.FileSystem, path: str, scheme: str) -> tuple[pafs.FileSystem, str]:
    if isinstance(filesystem, pafs.LocalFileSystem):  # a URI of this machine
        return filesystem, path
    return pafs.PyFileSystem(RetryingHandler(filesystem, scheme)), path


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def table_from_parquet(content: bytes, where: str) -> pa.Table:
    """The table in the bytes of a Parquet file.

    Raises:
        DataError: the file, named by `where`, is damaged.
    """
    try:
        return pq.read_table(pa.BufferReader(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{where} is not a whole Parquet file: {error}",
            "part files are read as they were written",
            "delete the file's folder and run the same command: the stage is done again",
        ) from error


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    ).encode("utf-8", "surrogatepass")


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value."""
    return sha256(canonical_json(value))
