"""JSON and other files whose size and hash are recorded and compared on each read.

A mismatch raises an error that names the file, the expected value and the actual one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from raydpo.core.errors import DataError, ManifestError, said_by
from raydpo.core.manifests import hold_fields
from raydpo.core.storage import Folder, fingerprint, sha256

#: Files that are hashed at the same time: one core hashes more slowly than a disk reads.
_HASHING_THREADS: Final = 8


@dataclass(frozen=True)
class Damage:
    """A file that differs from its record: its name, and its expected and actual size or hash."""

    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.name} (expected {self.expected}, found {self.found})"


def write_checked(folder: Folder, name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Write JSON with its checksum; returns what was written."""
    checked = {**value, "checksum": fingerprint(value)}
    folder.write_json(name, checked)
    return checked


def read_checked(
    folder: Folder, name: str, fields: type[BaseModel] | None = None
) -> dict[str, Any]:
    """JSON that `write_checked` wrote.

    Args:
        folder: where it lies.
        name: of the file.
        fields: what it holds at least.

    Raises:
        ManifestError: it is damaged, or lacks a field.
    """
    return checked_value(folder, name, folder.read_bytes(name), fields)


def checked_value(
    folder: Folder, name: str, content: bytes, fields: type[BaseModel] | None = None
) -> dict[str, Any]:
    """The value in the content of a file that `write_checked` wrote; raises as `read_checked`."""
    where = f"{folder.uri}/{name}"
    way_out = f"restore {where}, or delete {folder.uri}: then it is done again from its inputs"
    rule = "it is JSON that raydpo wrote, with its own checksum"
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is damaged: {said_by(error)}", rule, way_out) from error
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is damaged: not a mapping", rule, way_out)
    checksum = value.get("checksum")
    if checksum != fingerprint({k: v for k, v in value.items() if k != "checksum"}):
        raise ManifestError(f"{where} is damaged: its checksum does not match", rule, way_out)
    if fields is not None:
        hold_fields(fields, value, where, way_out)
    return value


def check_sizes(folder: Folder, sizes: dict[str, int], files: list[dict[str, Any]]) -> None:
    """Check cheaply that every file exists with the size in its record.

    Raises:
        DataError: a file is missing or has another size.
    """
    for damage in _other_sizes(sizes, files):
        raise DataError(
            f"{folder.uri}/{damage.name} has {damage.found}",
            f"its record says {damage.expected}",
            f"restore the file, or delete {folder.uri}: then the stage is done again",
        )


def damaged_files(folder: Folder, files: list[dict[str, Any]]) -> list[Damage]:
    """Files that are missing or differ from their records.

    A file of this machine is hashed once by each process while its size, time and inode stay the
    same. Of files in an object store, which keeps checksums of its own, the size is compared: they
    are hashed when they are read.
    """
    sizes = folder.files(recursive=True)
    damaged = list(_other_sizes(sizes, files))
    if not folder.is_local:
        return damaged
    seen = {damage.name for damage in damaged}
    whole = [file for file in files if file["name"] not in seen]
    found = file_hashes([folder.local_path(file["name"]) for file in whole])
    return damaged + [
        Damage(file["name"], file["sha256"], sha256)
        for file, sha256 in zip(whole, found, strict=True)
        if sha256 != file["sha256"]
    ]


def file_hash(path: Path) -> str:
    """Hexadecimal SHA-256 of a local file, read again if its size, time or inode changes."""
    state = path.stat()
    return _file_hash(path, state.st_size, state.st_mtime_ns, state.st_ino)


def file_hashes(paths: list[Path]) -> list[str]:
    """`file_hash` of some files, several at a time."""
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        return list(threads.map(file_hash, paths))


@functools.cache
def _file_hash(path: Path, *_state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _other_sizes(sizes: dict[str, int], files: list[dict[str, Any]]) -> Iterable[Damage]:
    for file in files:
        found = sizes.get(file["name"])
        if found != file["bytes"]:
            yield Damage(
                file["name"],
                f"{file['bytes']} bytes",
                "no file" if found is None else f"{found} bytes",
            )


def check_hashes(folder: Folder, files: list[dict[str, Any]]) -> bytes:
    """Read files and compare them with their hashes; return the last one's content.

    Raises:
        DataError: a file is missing or was changed.
    """
    content = b""
    for file in files:
        where = f"{folder.uri}/{file['name']}"
        way_out = "delete the file and run the same command: it makes again what is missing; or restore it"
        try:
            content = folder.read_bytes(file["name"])
        except OSError as error:
            raise DataError(
                f"{where} cannot be read: {error}", "its record names it", way_out
            ) from error
        if (found := sha256(content)) != file["sha256"]:
            raise DataError(
                f"{where} was changed: its SHA-256 is {found}",
                f"its record says {file['sha256']}",
                way_out,
            )
    return content


def size_and_hash(content: bytes) -> dict[str, Any]:
    """What a record says of a file, beside its name."""
    return {"bytes": len(content), "sha256": sha256(content)}
