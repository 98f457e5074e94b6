"""Files that are held against what was written down of them.

What comes in: JSON to keep, and records that name files with their sizes and hashes. What
goes out: the same content, or an error that names the file.
"""

from __future__ import annotations

import json
from typing import Any

from raydpo.errors import DataError, ManifestError
from raydpo.storage import Folder, fingerprint, sha256


def write_checked(folder: Folder, name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Write JSON with its checksum; returns what was written."""
    checked = {**value, "checksum": fingerprint(value)}
    folder.write_json(name, checked)
    return checked


def read_checked(folder: Folder, name: str) -> dict[str, Any]:
    """JSON that `write_checked` wrote.

    Raises:
        ManifestError: it is damaged.
    """
    where = f"{folder.uri}/{name}"
    way_out = f"restore {where}, or delete {folder.uri}: then it is done again from its inputs"
    rule = "it is JSON that raydpo wrote, with its own checksum"
    try:
        value = json.loads(folder.read_bytes(name))
    except ValueError as error:
        raise ManifestError(f"{where} is damaged: {error}", rule, way_out) from error
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is damaged: not a mapping", rule, way_out)
    checksum = value.get("checksum")
    if checksum != fingerprint({k: v for k, v in value.items() if k != "checksum"}):
        raise ManifestError(f"{where} is damaged: its checksum does not match", rule, way_out)
    return value


def check_sizes(folder: Folder, sizes: dict[str, int], files: list[dict[str, Any]]) -> None:
    """Cheap look at what is there: every file, with the size that its record says.

    Raises:
        DataError: a file is missing or has another size.
    """
    for file in files:
        if sizes.get(file["name"]) != file["bytes"]:
            raise DataError(
                f"{folder.uri}/{file['name']} has {sizes.get(file['name'], 'no')} bytes",
                f"its record says {file['bytes']}",
                f"restore the file, or delete {folder.uri}: then the stage is done again",
            )


def check_hashes(folder: Folder, files: list[dict[str, Any]]) -> bytes:
    """Read files and hold them against their hashes; returns the last one's content.

    Raises:
        DataError: a file is missing or was changed.
    """
    content = b""
    for file in files:
        where = f"{folder.uri}/{file['name']}"
        way_out = f"restore the file, or delete {folder.uri}: then the stage is done again"
        try:
            content = folder.read_bytes(file["name"])
        except OSError as error:
            raise DataError(
                f"{where} cannot be read: {error}", "its record names it", way_out
            ) from error
        if sha256(content) != file["sha256"]:
            raise DataError(f"{where} was changed", "its hash is that of its record", way_out)
    return content


def size_and_hash(content: bytes) -> dict[str, Any]:
    """What a record says of a file, beside its name."""
    return {"bytes": len(content), "sha256": sha256(content)}
