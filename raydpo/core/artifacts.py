"""Compare files that a finished stage left with the hashes in its manifest.

Every reader of such a folder or file calls this module. An error names the file, the expected
hash and the actual one.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

from raydpo.core.checked import check_hashes, checked_value, damaged_files
from raydpo.core.errors import DataError
from raydpo.core.storage import Folder

_MANIFEST: Final = "manifest.json"
#: Keys of every manifest that raydpo wrote; other programs have files of that name, too.
_OWN_KEYS: Final = {"raydpo", "stage", "files", "checksum"}


def hold_artifacts(local: Path, uri: str) -> None:
    """Compare the files of a folder inside a finished stage with the stage's manifest.

    Nothing is known of a folder that no stage of raydpo made. A file is hashed once by each
    process while its size, time and inode stay the same.

    Args:
        local: the files, or a copy of them on this machine.
        uri: the folder that they are, or are a copy of.

    Raises:
        DataError: a file is missing or was changed; it is named.
        ManifestError: the manifest is damaged.
    """
    parent, _, name = uri.rstrip("/").rpartition("/")
    manifest = _manifest(Folder(parent)) if parent else None
    if manifest is None:
        return
    inside = f"{name}/"
    files = [
        {**file, "name": file["name"].removeprefix(inside)}
        for file in manifest["files"]
        if file["name"].startswith(inside)
    ]
    for damage in damaged_files(Folder(str(local)), files):
        raise DataError(
            f"{uri}/{damage.name} was changed: found {damage.found}",
            f"{parent}/{_MANIFEST} says {damage.expected}",
            "run the command that made it again: it makes the file again where it can; or restore "
            "the file. A model that you change on purpose is copied to another folder first",
        )


def held_bytes(folder: Folder, name: str) -> bytes:
    """The content of a file, compared with the manifest in its folder if there is one.

    Raises:
        DataError: it was changed since its stage was finished.
        ManifestError: the manifest is damaged.
    """
    manifest = _manifest(folder)
    entries = [file for file in (manifest or {}).get("files", []) if file["name"] == name]
    return check_hashes(folder, entries) if entries else folder.read_bytes(name)


def _manifest(folder: Folder) -> dict[str, Any] | None:
    """A stage's manifest; None if there is none, or if another program wrote it."""
    if not folder.is_file(_MANIFEST):
        return None
    if not folder.is_local:
        return _own_manifest(folder)
    state = folder.local_path(_MANIFEST).stat()
    return _kept_manifest(folder, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache
def _kept_manifest(folder: Folder, *_state: int) -> dict[str, Any] | None:
    return _own_manifest(folder)


def _own_manifest(folder: Folder) -> dict[str, Any] | None:
    content = folder.read_bytes(_MANIFEST)
    if not all(f'"{key}"'.encode() in content for key in _OWN_KEYS):
        return None
    try:
        value = json.loads(content)
    except ValueError:
        return checked_value(folder, _MANIFEST, content)  # which says what is wrong
    ours = isinstance(value, dict) and value.keys() >= _OWN_KEYS
    return checked_value(folder, _MANIFEST, content) if ours else None
