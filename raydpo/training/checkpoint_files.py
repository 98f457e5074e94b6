"""The files of a checkpoint: check that they are intact, and read them without running code.

For the folder that `checkpoints` writes, the module makes a manifest with the hash of every file,
and names files that differ from it. Its reader for torch.distributed.checkpoint unpickles only
that library's plain records.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from raydpo.core.errors import DataError

MANIFEST: Final = "checkpoint.json"
_FORMAT: Final = 1
_BYTES_AT_A_TIME: Final = 1 << 20

#: Classes that the metadata of a checkpoint may contain; anything else is refused.
_KNOWN: Final = {
    "torch": {"Size", "float32", "float64", "float16", "bfloat16", "int64", "int32", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},  # the name of the same classes in Python 3.13
}


class SafeReader(FileSystemReader):
    """Reader of checkpoints whose `.metadata`, a pickle, may contain only known plain records.

    Raises:
        DataError: the metadata contains anything else, or is damaged.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the checkpoint's metadata; torch's own method unpickles whatever it finds."""
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            metadata: Metadata = _KnownClasses(io.BytesIO(path.read_bytes())).load()
        except (DataError, OSError):
            raise
        except Exception as error:  # a damaged pickle can raise nearly any error
            raise _damaged(str(path), f"{type(error).__name__}: {error}") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafeLoadPlanner(DefaultLoadPlanner):
    """Planner that loads values other than tensors, such as optimizer settings, as plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Load one value; torch's own method passes `weights_only=False`, which may run code."""
        plain = torch.load(value, weights_only=True)
        repacked = io.BytesIO()
        torch.save(plain, repacked)
        repacked.seek(0)
        super().load_bytes(read_item, repacked)


def file_entries(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of files by name; each file is read a piece at a time."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(files)
    }


def write_manifest(folder: Path, step: int, entries: dict[str, dict[str, Any]]) -> None:
    """Write the manifest last; without it, the folder does not count as a checkpoint."""
    value = {"format": _FORMAT, "step": step, "files": dict(sorted(entries.items()))}
    partial = folder / f".{MANIFEST}.tmp"
    partial.write_text(json.dumps({**value, "checksum": _checksum(value)}, indent=1))
    partial.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest: `step`, and `files` with their sizes and hashes.

    Raises:
        DataError: it is missing or damaged; the error names the file.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_bytes())
        checksum = value.pop("checksum")
    except FileNotFoundError as error:
        raise _damaged(str(path), "it is missing: the checkpoint was never finished") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise _damaged(str(path), f"{type(error).__name__}: {error}") from error
    if checksum != _checksum(value):
        raise _damaged(str(path), "its checksum does not match")
    return value


def check_files(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Compare files with their manifest's entries.

    Raises:
        DataError: a file is missing or damaged; the error names it.
    """
    for name, entry in entries.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "it is missing" if size is None else f"it has {size} bytes"
            raise _damaged(str(path), f"{found}, and had {entry['bytes']} when it was written")
        if _sha256(path) != entry["sha256"]:
            raise _damaged(str(path), "its hash is not that of its manifest")


def last_whole_step(checkpoints: Path) -> int | None:
    """Return the step of the newest whole checkpoint in a local folder; None if there is none."""
    folders = sorted(path for path in checkpoints.glob("checkpoint_*") if path.is_dir())
    if not folders:
        return None
    try:
        manifest = read_manifest(folders[-1])
        check_files(folders[-1], manifest["files"])
    except (DataError, OSError):
        return None
    return manifest["step"]


class _KnownClasses(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN.get(module, ()):
            raise DataError(
                f"a checkpoint's metadata names {module}.{name}",
                "it holds plain records of torch.distributed.checkpoint only: anything else in "
                "a pickle may run code",
                "this file was not written by raydpo: delete the checkpoint",
            )
        return super().find_class(module, name)


def _damaged(where: str, why: str) -> DataError:
    return DataError(
        f"{where} is damaged: {why}",
        "a checkpoint is loaded only where every file is as it was written",
        "restore the file, or delete its folder: training goes on from the one before it",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_BYTES_AT_A_TIME):
            digest.update(piece)
    return digest.hexdigest()


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
