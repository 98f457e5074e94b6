"""Hash the content of a model folder's files, whatever their layout.

For JSON, the hash covers the parsed values; for safetensors, it covers the tensors by name. The
order of keys, spaces, and the distribution of tensors over files do not matter. For any other kind
of file it covers the bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from raydpo.core.checked import file_hash
from raydpo.core.fingerprints import Fingerprint, shortened
from raydpo.core.storage import fingerprint

#: Number of tensors hashed in parallel, because one core hashes more slowly than a disk reads.
_HASHING_THREADS: Final = 8
_BLOCK_BYTES: Final = 1 << 24
#: If a JSON file has more keys than this, as a vocabulary has, single keys are not reported.
_MOST_KEYS: Final = 100
#: A safetensors file begins with the length of its header, an unsigned number of this many bytes.
_LENGTH_BYTES: Final = 8
#: The part of a tensor's name that says which layer it belongs to.
_LAYER: Final = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Content:
    """A file's content: entries by name, as JSON values or hashes, and what messages report."""

    entries: dict[str, Any]
    told: dict[str, Any]


@dataclass(frozen=True)
class _Tensor:
    """The place of a tensor in its file, in bytes."""

    name: str
    dtype: Any
    shape: Any
    begin: int
    end: int


def files_fingerprint(paths: Iterable[Path], without: frozenset[str] = frozenset()) -> Fingerprint:
    """Fingerprint the content of files; tensors count by name, whichever file they are in.

    Args:
        paths: the files, whose names must differ.
        without: top-level keys of JSON files that do not count.
    """
    entries: dict[str, list[Any]] = {}
    told: dict[str, Any] = {}
    for path in sorted(paths):
        content = _content(path, without)
        for name, value in content.entries.items():
            entries.setdefault(name, []).append(value)
        told |= content.told
    # Reading refuses a name that occurs in two files; here both count.
    hashed = {name: sorted(values, key=fingerprint) for name, values in entries.items()}
    return Fingerprint(fingerprint(hashed), told)


def _content(path: Path, without: frozenset[str]) -> Content:
    state = path.stat()
    return _content_of(path, without, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache
def _content_of(path: Path, without: frozenset[str], *_state: int) -> Content:
    """Fall back to the bytes of a malformed file; the code that reads it will report the damage."""
    parsed = None
    if path.suffix == ".json":
        parsed = _json_content(path, without)
    elif path.suffix == ".safetensors":
        parsed = _tensor_content(path)
    if parsed is None:
        value = {path.name: file_hash(path)}
        return Content(value, shortened(value))
    return parsed


def _json_content(path: Path, without: frozenset[str]) -> Content | None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return Content({path.name: fingerprint(value)}, shortened({path.name: value}))
    keys = {k: v for k, v in cast("dict[str, Any]", value).items() if k not in without}
    whole = {path.name: fingerprint(keys)}
    if len(keys) > _MOST_KEYS:
        return Content(whole, shortened(whole))
    return Content(whole, shortened({f"{path.name}: {key}": keys[key] for key in keys}))


def _tensor_content(path: Path) -> Content | None:
    tensors = _tensors(path)
    if tensors is None:
        return None
    with open(path, "rb") as file, ThreadPoolExecutor(_HASHING_THREADS) as threads:
        hashes = list(threads.map(functools.partial(_hash, file.fileno()), tensors))
    entries: dict[str, Any] = {}
    layers: dict[str, dict[str, Any]] = {}
    for tensor, sha256 in zip(tensors, hashes, strict=True):
        value = [tensor.dtype, tensor.shape, sha256]
        entries[f"tensor {tensor.name}"] = value
        match = _LAYER.match(tensor.name)
        layers.setdefault(match[1] if match else tensor.name, {})[tensor.name] = value
    told = shortened({f"weights of {name}": values for name, values in layers.items()})
    return Content(entries, told)


def _tensors(path: Path) -> list[_Tensor] | None:
    """Return the tensors of a safetensors file in order; None if its header is damaged."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if start > size:
            return None
        try:
            header = json.loads(file.read(length))
            tensors = [
                _Tensor(name, of["dtype"], of["shape"], *(start + at for at in of["data_offsets"]))
                for name, of in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return None
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    # As safetensors demands, tensors lie side by side and fill the file, so that every byte counts.
    ends = [start, *(tensor.end for tensor in tensors)]
    whole = [tensor.begin for tensor in tensors] == ends[:-1] and ends[-1] == size
    return tensors if whole and ends == sorted(ends) else None


def _hash(file: int, tensor: _Tensor) -> str:
    digest = hashlib.sha256()
    at = tensor.begin
    while at < tensor.end and (block := os.pread(file, min(_BLOCK_BYTES, tensor.end - at), at)):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()
