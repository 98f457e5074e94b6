"""Files that a finished stage left, held against the hashes in its manifest by whoever reads them.

What comes in: a folder that a stage made, or a file in it. What goes out: nothing or the file's
content, or an error that names the file, the hash that was expected and the one that was found.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

from raydpo.checked import check_hashes, damaged_files, read_checked
from raydpo.errors import DataError
from raydpo.storage import Folder

_MANIFEST: Final = "manifest.json"
#: Keys of every manifest that raydpo wrote; other programs have files of that name, too.
_OWN_KEYS: Final = {"raydpo", "stage", "files", "checksum"}


def hold_artifacts(local: Path, uri: str) -> None:
    """Hold the files of a folder inside a finished stage against the stage's manifest.

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
    """The content of a file, held against the manifest in its folder where there is one.

    Raises:
        DataError: it was changed since its stage was finished.
        ManifestError: the manifest is damaged.
    """
    manifest = _manifest(folder)
    entries = [file for file in (manifest or {}).get("files", []) if file["name"] == name]
    return check_hashes(folder, entries) if entries else folder.read_bytes(name)


def _manifest(folder: Folder) -> dict[str, Any] | None:
    """A stage's manifest; None where there is none, or one of another program."""
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
        return read_checked(folder, _MANIFEST)  # which says what is wrong
    ours = isinstance(value, dict) and value.keys() >= _OWN_KEYS
    return read_checked(folder, _MANIFEST) if ours else None
