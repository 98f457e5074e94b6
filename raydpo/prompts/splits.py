"""Find the split that the name of a data file declares, and select the files of one split.

Paths are relative to the requested folder or glob. `train-00000-of-00002.parquet` names its split
in full. Otherwise the name of the file or of a folder may contain one of the words that `datasets`
knows (train, validation, test and similar words).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from raydpo.core.errors import DataError

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
