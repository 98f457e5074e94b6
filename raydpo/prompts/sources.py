"""Read rows of any supported source, in a fixed order and in constant memory.

A source is a file, a glob, a folder, a URI, or the name of a `datasets` dataset. It yields
`SourceRow`s. A poison row (not UTF-8, not JSON, not an object) carries its problem and never
raises; blank lines are not rows.

`train-00000-of-00002.parquet` names its split in full. Otherwise the name of a file or folder,
relative to the requested folder or glob, may contain a word that `datasets` knows, such as train,
validation or test.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs

from raydpo.config.job import PreferencesConfig, PromptsConfig, SftConfig, SourceFormat
from raydpo.core.errors import DataError
from raydpo.core.storage import fingerprint, folder_of, locate
from raydpo.core.tables import Row
from raydpo.prompts import readers
from raydpo.prompts.readers import batch_rows

_FORMAT_OF_ENDING: Final[dict[str, SourceFormat]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
}
_COMPRESSED: Final = (".gz", ".bz2", ".zst")
_DATASET_FILES: Final = ("dataset_dict.json", "state.json")
_DATASET_BATCH_ROWS: Final = 1024
_WILDCARDS: Final = re.compile(r"[*?\[]")
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SourceRow:
    """One row of a source: the row, or the problem with it and its text if readable.

    `source` is the name of the source in a mixture.
    """

    index: int
    row: Row | None
    problem: str | None
    raw: str = ""
    source: str = ""

    @property
    def text(self) -> str:
        """The row as text, for the quarantine."""
        return self.raw if self.row is None else row_text(self.row)


#: Any section of the configuration that names a source.
SourceSection = PromptsConfig | PreferencesConfig | SftConfig


@dataclass(frozen=True)
class _File:
    filesystem: pafs.FileSystem
    path: str
    format: SourceFormat


@dataclass(frozen=True)
class _Found:
    """The files that a path names, their folder, and whether that folder was given."""

    files: list[tuple[pafs.FileSystem, str]]
    base: str
    is_folder: bool


def row_text(row: Row) -> str:
    """Return a row as JSON; values that JSON lacks become text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def location(section: SourceSection) -> tuple[str, SourceFormat, str]:
    """Return path, format and split of a section's source."""
    path = section.data if isinstance(section, SftConfig) else section.path
    return path, section.format, section.split


def source_rows(
    path: str, format: SourceFormat = "auto", split: str = "train", limit: int | None = None
) -> Iterator[SourceRow]:
    """Read the rows of a source, with files in sorted order.

    Args:
        path: a file, a glob, a folder, a URI, or the name of a `datasets` dataset.
        format: how to read it; `auto` uses the file names' endings.
        split: the split of a `datasets` dataset, or of files whose names contain it.
        limit: maximum number of rows.

    Raises:
        DataError: the source or the split does not exist, or a file cannot be read as a whole.
    """
    reads = itertools.islice(_reads(path, format, split), limit)
    for index, (row, problem, raw) in enumerate(reads):
        yield SourceRow(index, row, problem, raw)


def bytes_hash(path: str, format: SourceFormat = "auto", split: str = "train") -> str:
    """Hash the source's bytes, whatever its files are called; for a dataset, its own fingerprint.

    Raises:
        DataError: the source does not exist.
    """
    if is_dataset(path, format):
        return fingerprint(["dataset", str(getattr(_dataset(path, split), "_fingerprint", ""))])
    files = _files(path, format, split)
    return fingerprint([[file.format, _file_hash(file)] for file in files])


def files_of_other_splits(path: str, format: SourceFormat, split: str) -> list[str]:
    """Return names of files in the source that belong to another split and are not read.

    Raises:
        DataError: the source or the split does not exist.
    """
    if is_dataset(path, format):
        return []
    read = {file.path for file in _files(path, format, split)}
    files, found = _files_of_all_splits(path, format)
    return [file.path[len(found.base) + 1 :] for file in files if file.path not in read]


def other_splits(path: str, format: SourceFormat = "auto", split: str = "train") -> list[str]:
    """Return the names of the source's other splits, as far as files or a saved dataset name them.

    Raises:
        DataError: the source or the split does not exist.
    """
    if is_dataset(path, format):
        listed = Path(folder_of(path).uri) / _DATASET_FILES[0]
        named: set[str] = set()
        if listed.is_file():
            named = set(json.loads(listed.read_text(encoding="utf-8"))["splits"])
        return sorted(named - {split})
    files = files_of_other_splits(path, format, split)
    return sorted({name for file in files if (name := split_named_by(file)) not in (None, split)})


def is_dataset(path: str, format: SourceFormat = "auto") -> bool:
    """Return whether the source is a `datasets` folder or hub dataset rather than plain files."""
    if format != "auto" or "://" in path:
        return format == "dataset"
    with _readable(path):
        folder = Path(folder_of(path).uri)
        if folder.is_dir():
            return any((folder / name).is_file() for name in _DATASET_FILES)
        return (
            _HUB_NAME.fullmatch(path) is not None
            and not folder.exists()
            and not Path(path.split("/")[0]).exists()
            and _format_of(path) is None
        )


def _reads(path: str, format: SourceFormat, split: str) -> Iterator[readers.Read]:
    if is_dataset(path, format):
        # A dataset saved with a format of arrays or tensors is read as plain values.
        yield from _dataset_reads(_dataset(path, split).with_format(None))
        return
    for file in _files(path, format, split):
        with _readable(file.path):
            yield from _file_reads(file)


@contextmanager
def _readable(path: str) -> Generator[None]:
    """Turn errors of a file system or archive into an error that names the file.

    Raises:
        DataError: the file cannot be read to its end.
    """
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "the input is read to its end",
            "restore the file, write it again, or fix its permissions",
        ) from error


def _dataset_reads(dataset: Any) -> Iterator[readers.Read]:
    """Yield the rows of a dataset; use its Arrow table for values that Python cannot represent."""
    for start in range(0, len(dataset), _DATASET_BATCH_ROWS):
        part = dataset.select(range(start, min(start + _DATASET_BATCH_ROWS, len(dataset))))
        try:
            rows: list[readers.Read] = [(dict(row), None, "") for row in part]
        except (ValueError, ArithmeticError, LookupError, TypeError, pa.ArrowException):
            table: pa.Table = part.with_format("arrow")[:]
            rows = [read for batch in table.to_batches() for read in batch_rows(batch)]
        yield from rows


def _file_reads(file: _File) -> Iterator[readers.Read]:
    if file.format == "parquet":
        with file.filesystem.open_input_file(file.path) as opened:
            yield from readers.read_parquet(opened, file.path)
        return
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        if file.format == "jsonl":
            yield from readers.read_jsonl(stream)
        elif file.format == "json":
            yield from readers.read_json(stream, file.path)
        elif file.format == "csv":
            yield from readers.read_csv(stream, file.path)
        else:
            yield from readers.read_text(stream)


def _file_hash(file: _File) -> str:
    digest = hashlib.sha256()
    with (
        _readable(file.path),
        file.filesystem.open_input_stream(file.path, compression=None) as stream,
    ):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(path: str, format: SourceFormat, split: str) -> list[_File]:
    """Return the files of a source's split, sorted by path, each with its format."""
    files, found = _files_of_all_splits(path, format)
    below = {file.path: file.path[len(found.base) :] for file in files}
    kept = set(files_of_split(path, below, split, is_folder=found.is_folder))
    return [file for file in files if file.path in kept]


def _files_of_all_splits(path: str, format: SourceFormat) -> tuple[list[_File], _Found]:
    with _readable(path):
        found = _found(path)
    if not found.files:
        raise DataError(
            f"{path}: there is no such file, folder or match",
            "an input is a file, a glob, a folder, a URI, or the name of a `datasets` dataset",
            "check the path (relative ones start at the folder the command runs in); "
            "for a dataset of the hub set `format: dataset`",
        )
    files: list[_File] = []
    for filesystem, name in found.files:
        known = format if format != "auto" else _format_of(name)
        if known is not None:
            files.append(_File(filesystem, name, known))
    if not files:
        raise DataError(
            f"{path}: no known ending among {', '.join(Path(name).name for _, name in found.files[:5])}",
            f"`format: auto` knows {', '.join(_FORMAT_OF_ENDING)} (also with .gz)",
            "rename the file, or name its format: jsonl, json, parquet, csv, text or dataset",
        )
    return files, found


def _found(path: str) -> _Found:
    """Find the files that a path, folder or glob names."""
    uri = folder_of(path).uri
    wildcard = _WILDCARDS.search(uri)
    base = uri[: uri.rindex("/", 0, wildcard.start())] if wildcard else uri
    literal = None if wildcard and "://" in uri else uri
    if literal is not None:
        filesystem, name = locate(literal)
        info = filesystem.get_file_info(name)
        if info.type == pafs.FileType.File:
            return _Found([(filesystem, name)], name.rpartition("/")[0], is_folder=False)
        if info.type == pafs.FileType.Directory:
            inside = _below(filesystem, name, recursive=True)
            return _Found([(filesystem, inner) for inner in inside], name, is_folder=True)
    if wildcard is None:
        return _Found([], uri, is_folder=False)
    filesystem, folder = locate(base)
    pattern = uri[len(base) + 1 :]
    matches = _glob(pattern, uri)
    names = _below(filesystem, folder, recursive="/" in pattern or "**" in pattern)
    skip = len(folder.rstrip("/")) + 1
    matching = [(filesystem, name) for name in names if matches.fullmatch(name[skip:])]
    return _Found(matching, folder, is_folder=False)


def _below(filesystem: pafs.FileSystem, folder: str, recursive: bool) -> list[str]:
    """Return the files in a folder, sorted, without hidden ones (`.name`, `_name`)."""
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
    names = [info.path for info in filesystem.get_file_info(selector) if info.is_file]
    skip = len(folder.rstrip("/")) + 1
    return sorted(n for n in names if not any(p[0] in "._" for p in n[skip:].split("/")))


def _regex_of(pattern: str) -> str:
    """Convert a glob to a regular expression; `*` stays within a folder, `**/` crosses folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(part) or (_letters(part[1:-1]) if part[:1] == "[" else re.escape(part))
        for part in parts
    )


def _letters(of: str) -> str:
    """Convert a set of letters to a regular expression; only a leading `!` and `-` are special."""
    negated = of.startswith("!") and len(of) > 1
    letters = re.sub(r"([\[\\&~|^])", r"\\\1", of[negated:]).replace("--", "-\\-")
    return f"[{'^' if negated else ''}{letters}]"


def _glob(pattern: str, uri: str) -> re.Pattern[str]:
    try:
        return re.compile(_regex_of(pattern))
    except re.error as error:
        raise DataError(
            f"{uri}: {error}",
            "a glob has *, ?, ** and sets of letters such as [a-z]",
            "fix the glob; a file whose name has such letters is taken literally if it exists",
        ) from error


def _format_of(name: str) -> SourceFormat | None:
    lowered = name.lower()
    for ending in _COMPRESSED:
        lowered = lowered.removesuffix(ending)
    return _FORMAT_OF_ENDING.get(Path(lowered).suffix)


def _dataset(path: str, split: str) -> Any:
    """Load a `datasets.Dataset`: a folder that `save_to_disk` wrote, or a dataset of the hub."""
    import datasets

    folder = Path(folder_of(path).uri)
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in _DATASET_FILES):
            loaded: Any = datasets.load_from_disk(str(folder))
        else:
            return datasets.load_dataset(path, split=split)
    except Exception as error:
        raise DataError(
            f"dataset {path!r}, split {split!r}: {type(error).__name__}: {error}",
            "a dataset is a folder that `save_to_disk` wrote, or the name of one on the hub",
            "check the name, the split and the network, or save it to a folder once",
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return loaded[_existing(split, sorted(map(str, loaded)), path)]
    # A table saved alone may have kept its split's name; no other split exists.
    return loaded if split == DEFAULT_SPLIT else _only(loaded, split, path)


def _existing(split: str, there: list[str], path: str) -> str:
    if split not in there:
        raise DataError(
            f"split {split!r} of dataset {path!r}: it has {', '.join(there)}",
            "a saved DatasetDict holds its splits by name",
            f"set `split` to {' or '.join(there)}",
        )
    return split


def _only(dataset: Any, split: str, path: str) -> Any:
    """Return the only table of a folder, if its split is the requested one."""
    own = str(dataset.split) if dataset.split is not None else None
    if own != split:
        raise DataError(
            f"split {split!r} of dataset {path!r}: it is one table"
            + (f", of split {own}" if own else ", without splits"),
            "`split` chooses among the splits of a source",
            "remove `split`, or save a DatasetDict with its splits",
        )
    return dataset


#: The value of `split` if nobody sets it.
DEFAULT_SPLIT: Final = "train"
_SHARD: Final = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\b")
_WORDS: Final[dict[str, str]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def split_named_by(path: str) -> str | None:
    """Return the split that a file's path names; None if it names none or several."""
    shard = _SHARD.match(path.rsplit("/", 1)[-1])
    if shard is not None:
        return shard[1]
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", path.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def files_of_split(
    where: str, files: Mapping[str, str], split: str, *, is_folder: bool
) -> list[str]:
    """Return the files of a split, or all files if the user chose files and not a split.

    The user chose files if no file names a split, or if a single file or a glob was given. In both
    cases the requested split is the default one, and no file names it.

    Args:
        where: the source, for the message.
        files: each file, and its path below the source.
        split: the requested split.
        is_folder: whether a folder was given, rather than a file or a glob.

    Raises:
        DataError: the split does not exist; the message lists those that do.
    """
    named = {file: split_named_by(path) for file, path in files.items()}
    wanted = _WORDS.get(split, split)
    found = [file for file, name in named.items() if name in (split, wanted)]
    there = sorted({name for name in named.values() if name is not None})
    if found:
        return found
    if split == DEFAULT_SPLIT and not (is_folder and there):
        return list(files)
    raise DataError(
        f"split {split!r} of {where}: "
        + (f"its files are of split {', '.join(there)}" if there else "no file names a split"),
        "a file's split stands in its name: train-00000-of-00001.parquet, test.jsonl, dev/a.csv",
        f"set `split` to {' or '.join(there)}" if there else "remove `split`, or rename the files",
    )
