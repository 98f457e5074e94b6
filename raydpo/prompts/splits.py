"""Which split the name of a data file says that it holds.

What comes in: paths of files, below the folder or glob that was asked for. What goes out: the
files of one split. `train-00000-of-00002.parquet` names its split in full; else one of the words
that `datasets` knows (train, validation, test and their like) may stand in a file's or folder's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from raydpo.errors import DataError

#: What `split` is where nobody sets it.
DEFAULT_SPLIT: Final = "train"
_SHARD: Final = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\b")
_WORDS: Final[dict[str, str]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def split_named_by(path: str) -> str | None:
    """The split that a file's path names; None where it names none, or more than one."""
    shard = _SHARD.match(path.rsplit("/", 1)[-1])
    if shard is not None:
        return shard[1]
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", path.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def files_of_split(
    where: str, files: Mapping[str, str], split: str, *, is_folder: bool
) -> list[str]:
    """The files of a split; all files where the user's choice is of files and not of a split.

    That is so where no file names a split, or a single file or a glob was given, and the
    default split is not among what they name.

    Args:
        where: the source, for the message.
        files: each file, and its path below the source.
        split: the split that is asked for.
        is_folder: a folder was given, and no file or glob.

    Raises:
        DataError: the split is not there; the message lists those that are.
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
