"""A network file system that retries each operation that fails for a while.

It wraps a file system of pyarrow or fsspec, and survives a store that throttles, drops
connections or answers slowly. It retries opens, reads, writes, lists and deletions, with random
waits that double (full jitter, M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog 2015). In the end an error names the file. A read resumes where it broke off; a write is
complete or absent.
"""

from __future__ import annotations

import errno
import io
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, Final, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from raydpo.core.credentials import without_credentials
from raydpo.core.errors import StorageError, said_by
from raydpo.core.progress import logger

T = TypeVar("T")

#: Waits add up to 51 seconds at most, and to half of that on average.
_MOST_ATTEMPTS: Final = 8
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 20.0
#: An operation that is slow each time is given up earlier.
_LONGEST_SECONDS: Final = 180.0
#: Attempts that pass without a word.
_SILENT_ATTEMPTS: Final = 2
#: One request to a store brings so much.
_BLOCK_BYTES: Final = 1 << 23
#: Larger files wait on the disk, and not in memory, until they are whole.
MOST_BYTES_IN_MEMORY: Final = 1 << 26
_FINAL: Final = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    StorageError,
)
_FINAL_NUMBERS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE)
#: What a store says that it will say again: of S3 and its like, in pyarrow's words.
_FINAL_TEXT: Final = re.compile(
    r"ACCESS_DENIED|NO_SUCH_(?:BUCKET|KEY|UPLOAD)|INVALID_(?:ACCESS_KEY|BUCKET|CLIENT)|"
    r"SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|HTTP status (?:400|401|403|404|405|409|411|412)\b"
)
#: Packages whose own errors may pass, though they are none of the operating system.
_OF_NETWORK: Final = ("aiohttp", "azure", "botocore", "gcsfs", "http", "requests", "urllib3")


def retried(act: Callable[[], T], uri: str) -> T:
    """Return what `act` returns, retrying it while it fails for a passing reason.

    Args:
        act: one operation that can be begun again from its start.
        uri: of the file, for messages; credentials in it are hidden.

    Raises:
        StorageError: it failed each time.
        OSError: it failed for what will not pass: no such file, no right.
    """
    begun = time.monotonic()
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        try:
            return act()
        except Exception as error:
            if not _may_pass(error):
                raise
            said = without_credentials(said_by(error))
            seconds = time.monotonic() - begun
            if attempt == _MOST_ATTEMPTS or seconds > _LONGEST_SECONDS:
                raise _given_up(uri, said, attempt, seconds) from error
            if attempt > _SILENT_ATTEMPTS:
                text = "%s: tried %d times in %.0f s, and again: %s"
                logger.warning(text, without_credentials(uri), attempt, seconds, said)
        longest = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
        time.sleep(random.uniform(0, longest))  # noqa: S311 - no secret
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, OSError):
        final = isinstance(error, _FINAL) or error.errno in _FINAL_NUMBERS
        return not final and not _FINAL_TEXT.search(str(error))
    return type(error).__module__.partition(".")[0] in _OF_NETWORK


def _given_up(uri: str, said: str, attempts: int, seconds: float) -> StorageError:
    return StorageError(
        f"{without_credentials(uri)} could not be reached in {attempts} attempts, {seconds:.0f} s: {said}",
        "the store answers, if not at once: opens, reads, writes and lists are tried again",
        "see that its address is right and that it can be reached from this node (AWS_ENDPOINT_URL, "
        "proxies, the network); the same command goes on from here",
    )


class RetryingHandler(pafs.FileSystemHandler):
    """What `pyarrow.fs.PyFileSystem` asks for, each operation by `retried`; picklable.

    Args:
        inner: the file system itself.
        scheme: of its URIs, for messages.
    """

    def __init__(self, inner: pafs.FileSystem, scheme: str) -> None:
        self.inner = inner
        self.scheme = scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetryingHandler) and self.inner == other.inner

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def get_type_name(self) -> str:
        """Name of the file system's type."""
        return f"retrying+{self.inner.type_name}"

    def normalize_path(self, path: str) -> str:
        """The path as the file system writes it."""
        return self.inner.normalize_path(path)

    def get_file_info(self, paths: str | list[str]) -> list[pafs.FileInfo]:
        """The metadata of each path."""
        names = [paths] if isinstance(paths, str) else paths
        return self._do(lambda: self.inner.get_file_info(names), names[0] if names else "")

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """The contents of a folder."""
        return self._do(lambda: self.inner.get_file_info(selector), selector.base_dir)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder."""
        self._do(lambda: self.inner.create_dir(path, recursive=recursive), path)

    def delete_dir(self, path: str) -> None:
        """Delete a folder with all that is in it."""
        self._delete(self.inner.delete_dir, path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete all that is in a folder."""
        self._do(lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok), path)

    def delete_root_dir_contents(self) -> None:
        """Refused, because nobody intends it."""
        raise NotImplementedError("raydpo deletes no whole store")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._delete(self.inner.delete_file, path)

    def move(self, src: str, dest: str) -> None:
        """Move a file or folder."""
        self._do(lambda: self.inner.move(src, dest), src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file inside the store."""
        self._do(lambda: self.inner.copy_file(src, dest), src)

    def open_input_stream(self, path: str) -> pa.PythonFile:
        """A file to read."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        """A file to read from any place."""
        source = _Source(lambda: self.inner.open_input_file(path), self._uri(path))
        return pa.PythonFile(io.BufferedReader(source, _BLOCK_BYTES), mode="r")

    def open_output_stream(self, path: str, metadata: dict[str, str]) -> pa.PythonFile:
        """A file to write, which is in the store once it is closed."""
        return pa.PythonFile(_Target(self, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str]) -> pa.PythonFile:
        """Refused: what was appended before an error would be appended twice."""
        raise NotImplementedError("files in a store are written whole")

    def put(self, path: str, content: IO[bytes], metadata: dict[str, str] | None = None) -> None:
        """Write a file from a local one that can be read again from its start."""

        def write() -> None:
            content.seek(0)
            with self.inner.open_output_stream(path, metadata=metadata or None) as out:
                shutil.copyfileobj(content, out, _BLOCK_BYTES)

        self._do(write, path)

    def _delete(self, act: Callable[[str], None], path: str) -> None:
        attempts = 0

        def delete() -> None:
            nonlocal attempts
            attempts += 1
            try:
                act(path)
            except FileNotFoundError:
                if attempts == 1:  # else it was deleted, and only the answer was lost
                    raise

        self._do(delete, path)

    def _do(self, act: Callable[[], T], path: str) -> T:
        return retried(act, self._uri(path))

    def _uri(self, path: str) -> str:
        return f"{self.scheme}://{path}"


class _Source(io.RawIOBase):
    """A file in a store; if a read fails, the file is reopened and the read resumes there."""

    def __init__(self, open_file: Callable[[], Any], uri: str) -> None:
        self._open_file = open_file
        self._uri = uri
        self._at = 0
        self._file: Any = retried(open_file, uri)
        self._size: int = retried(self._file.size, uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self._size - self._at))
        content = retried(lambda: self._read(size), self._uri) if size else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        if self._file is None:
            self._file = self._open_file()
        try:
            self._file.seek(self._at)
            content = self._file.read(size)
            if not content:
                raise OSError(f"the file ends at byte {self._at:,} of {self._size:,}")
            return content
        except Exception:
            self._file = None
            raise


class _Target(io.RawIOBase):
    """A file that goes to a store when it is closed."""

    def __init__(self, handler: RetryingHandler, path: str, metadata: dict[str, str]) -> None:
        self._handler, self._path, self._metadata = handler, path, metadata
        self._content = tempfile.SpooledTemporaryFile(MOST_BYTES_IN_MEMORY)  # noqa: SIM115 - until `close`

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return self._content.write(content)

    def tell(self) -> int:
        return self._content.tell()

    def close(self) -> None:
        if self.closed:
            return
        try:
            with self._content:
                self._handler.put(self._path, self._content, self._metadata)
        finally:
            super().close()
