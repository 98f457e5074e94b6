"""File names declare their split; a missing split is never read as another."""

from __future__ import annotations

import pytest

from raydpo.core.errors import DataError
from raydpo.prompts.sources import files_of_split, split_named_by


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/train_prefs-00000-of-00001.parquet", "train_prefs"),
        ("test.jsonl", "test"),
        ("helpful-base.test.jsonl.gz", "test"),
        ("dev/a.csv", "validation"),
        ("my_training_data.json", "train"),
        ("rows.jsonl", None),
        ("latest.jsonl", None),
        ("trainer_state.json", None),
        ("train_and_test.jsonl", None),
    ],
)
def test_a_name_says_the_split(path: str, split: str | None) -> None:
    assert split_named_by(path) == split


def _of(split: str, *paths: str, is_folder: bool = True) -> list[str]:
    return files_of_split("here", {path: path for path in paths}, split, is_folder=is_folder)


def test_only_files_of_the_split_are_taken() -> None:
    files = ("test-1.jsonl", "train-1.jsonl", "train-2.jsonl", "extra.jsonl")
    assert _of("train", *files) == ["train-1.jsonl", "train-2.jsonl"]
    assert _of("test", *files, is_folder=False) == ["test-1.jsonl"]
    assert _of("dev", "valid.jsonl", "test.jsonl") == ["valid.jsonl"]


def test_files_that_name_no_split_are_all_taken() -> None:
    assert _of("train", "a.jsonl", "b.jsonl") == ["a.jsonl", "b.jsonl"]


def test_files_that_are_asked_for_by_name_are_read_without_a_split() -> None:
    assert _of("train", "test-1.jsonl", "test-2.jsonl", is_folder=False) == [
        "test-1.jsonl",
        "test-2.jsonl",
    ]


@pytest.mark.parametrize(
    ("split", "files", "message"),
    [
        ("validation", ("train.jsonl", "test.jsonl"), "its files are of split test, train"),
        ("train", ("test.jsonl",), "its files are of split test"),
        ("test", ("rows.jsonl",), "no file names a split"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    split: str, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _of(split, *files)
