"""Every format gives the same rows; a row that cannot be read carries its problem."""

from __future__ import annotations

import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.core.errors import DataError
from raydpo.prompts.sources import SourceRow, bytes_hash, source_rows

ROWS = [{"id": str(i), "text": f"line {i}, with a comma — and a dash"} for i in range(7)]


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    lines = ["id,text", *(f'{row["id"]},"{row["text"]}"' for row in rows)]
    return "\r\n".join(lines).encode()


def _write(folder: Path, kind: str) -> Path:
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
        return file
    content = {
        "jsonl": _jsonl(ROWS),
        "jsonl.gz": gzip.compress(_jsonl(ROWS)),
        "json": json.dumps(ROWS, indent=2).encode(),
        "json.gz": gzip.compress(json.dumps(ROWS).encode()),
        "csv": _csv(ROWS),
        "csv.gz": gzip.compress(_csv(ROWS)),
    }[kind]
    file.write_bytes(content)
    return file


def _good(rows: list[SourceRow]) -> list[dict[str, Any] | None]:
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.row for row in rows]


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = list(source_rows(str(_write(tmp_path, kind))))
    assert _good(rows) == ROWS
    assert [row.index for row in rows] == list(range(7))


def test_a_text_file_is_a_prompt_a_line_without_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("eins\r\n\n zwei \nöl".encode())
    rows = list(source_rows(str(tmp_path / "p.txt")))
    assert _good(rows) == [{"text": "eins"}, {"text": " zwei "}, {"text": "öl"}]


def test_a_saved_dataset_is_read_with_its_split(tmp_path: Path) -> None:
    pieces = {"train": ROWS[:3], "test": ROWS[3:]}
    made = {name: datasets.Dataset.from_list(rows) for name, rows in pieces.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    for name, rows in pieces.items():
        assert _good(list(source_rows(str(tmp_path / "saved"), split=name))) == rows
    with pytest.raises(DataError, match=r"split 'nothing' of dataset .*: it has test, train"):
        list(source_rows(str(tmp_path / "saved"), split="nothing"))
    one = bytes_hash(str(tmp_path / "saved"), split="train")
    assert one != bytes_hash(str(tmp_path / "saved"), split="test")


def test_a_dataset_of_one_table_has_no_other_split(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    assert _good(list(source_rows(str(tmp_path / "one")))) == ROWS
    with pytest.raises(DataError, match=r"split 'test' of dataset .*: it is one table"):
        list(source_rows(str(tmp_path / "one"), split="test"))


def test_a_dataset_that_was_saved_as_arrays_is_read_as_values(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list([{"ids": [1, 2]}]).with_format("numpy")
    made.save_to_disk(str(tmp_path / "one"))
    assert _good(list(source_rows(str(tmp_path / "one")))) == [{"ids": [1, 2]}]


def test_a_folder_is_read_with_its_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_bytes(_jsonl([{"from": split}]))
    for split in ("train", "test"):
        assert _good(list(source_rows(str(tmp_path), split=split))) == [{"from": split}]
    with pytest.raises(DataError, match=r"split 'dev' of .*: its files are of split test, train"):
        list(source_rows(str(tmp_path), split="dev"))
    train, test = (bytes_hash(str(tmp_path), split=split) for split in ("train", "test"))
    assert train != test


def test_globs_and_folders_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", ".hidden.jsonl", "_log.jsonl"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(_jsonl([{"from": name}]))
    (tmp_path / "README.md").write_text("no rows")

    def names(path: str) -> list[str]:
        return [row.row["from"] for row in source_rows(path) if row.row]

    assert names(f"{tmp_path}") == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert names(f"{tmp_path}/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(f"{tmp_path}/**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert names(f"{tmp_path}/[!a].jsonl") == ["b.jsonl"]
    assert names(f"{tmp_path}/?eep/c*") == ["deep/c.jsonl"]
    assert names(f"file://{tmp_path}/*.jsonl") == ["a.jsonl", "b.jsonl"]


def test_a_file_whose_name_has_wildcards_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(_jsonl(ROWS[:1]))
    assert _good(list(source_rows(f"{tmp_path}/a[1].jsonl"))) == ROWS[:1]


def test_a_uri_of_an_fsspec_file_system_is_read() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/raydpo-sources/a.jsonl", _jsonl(ROWS))
    assert _good(list(source_rows("memory://raydpo-sources/a.jsonl"))) == ROWS
    assert _good(list(source_rows("memory://raydpo-sources/*.jsonl"))) == ROWS


def test_poison_lines_come_out_with_their_problem_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b'{"text": "\xff\xfe"}',
        b"{broken",
        b"[1, 2]",
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"text": "\\ud83d\\ude00"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    rows = list(source_rows(str(tmp_path / "x.jsonl")))
    assert [row.problem for row in rows] == [
        None,
        "not UTF-8",
        "not JSON",
        "not an object",
        "not Unicode: a lone surrogate",
        "not JSON",
        "not JSON",
        None,
    ]
    assert rows[0].row == {"text": "first"}
    assert rows[7].row == {"text": "😀"}
    assert rows[1].text == '{"text": "\\xff\\xfe"}'
    assert all(row.text.encode("utf-8") for row in rows)


def test_poison_rows_of_csv_json_text_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"p,q\n1,2\n1\n1,2,3\n\xff,2\n")
    (tmp_path / "b.json").write_bytes(b'[{"a": 1}, 2, {"a": "\\udfff"}, {"a": 3}]')
    (tmp_path / "c.txt").write_bytes(b"good\n\xff\nmore")
    bad = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "d.parquet")
    problems = {
        name: [row.problem for row in source_rows(str(tmp_path / name))]
        for name in ("a.csv", "b.json", "c.txt", "d.parquet")
    }
    assert problems["a.csv"] == [
        None,
        "fewer fields than the CSV header names",
        "more fields than the CSV header names",
        "not UTF-8",
    ]
    assert problems["b.json"] == [None, "not an object", "not Unicode: a lone surrogate", None]
    assert problems["c.txt"] == [None, "not UTF-8", None]
    assert problems["d.parquet"] == [None, "not UTF-8"]


def test_json_lists_are_read_across_chunks(tmp_path: Path) -> None:
    rows = [{"i": i, "text": "x" * (i * 7919 % 60_000)} for i in range(60)]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    assert _good(list(source_rows(str(tmp_path / "long.json")))) == rows


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    (tmp_path / "lines.json").write_bytes(b"  " + _jsonl(ROWS))
    assert _good(list(source_rows(str(tmp_path / "lines.json")))) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(_jsonl(ROWS) * 99)[:-30], "cannot be read"),
        ("a.json", b'[{"a": 1}, {"a"', "not a whole JSON list"),
        ("a.json", b'{"a": 1}]' + b"", None),
        ("b.json", b"3", "begins with '3'"),
        ("c.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("a.csv", b"", "is empty"),
        ("a.xlsx", b"x", "no known ending"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole_is_named(
    tmp_path: Path, name: str, content: bytes, message: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    if message is None:
        assert [row.problem for row in source_rows(str(tmp_path / name))] == ["not JSON"]
        return
    with pytest.raises(DataError, match=message) as caught:
        list(source_rows(str(tmp_path / name)))
    assert name in str(caught.value)


@pytest.mark.parametrize("path", ["missing.jsonl", "missing/*.jsonl", "missing/folder/x"])
def test_nothing_under_a_path_is_a_clear_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="no such file, folder or match"):
        list(source_rows(str(tmp_path / path)))
    with pytest.raises(DataError, match="no such file, folder or match"):
        bytes_hash(str(tmp_path / path))


def test_a_limit_stops_reading_and_counts_poison_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n" + _jsonl(ROWS))
    rows = list(source_rows(str(tmp_path / "a.jsonl"), limit=3))
    assert [row.problem for row in rows] == ["not JSON", None, None]


def test_an_explicit_format_wins_over_the_ending(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("one\ntwo")
    assert _good(list(source_rows(str(tmp_path / "prompts"), format="text"))) == [
        {"text": "one"},
        {"text": "two"},
    ]


def test_the_fingerprint_follows_the_bytes_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(ROWS))
    (tmp_path / "b.jsonl").write_bytes(_jsonl(ROWS))
    (tmp_path / "c.jsonl").write_bytes(_jsonl(ROWS[1:]))
    of = {name: bytes_hash(f"{tmp_path}/{name}.jsonl") for name in "abc"}
    assert of["a"] == of["b"] != of["c"]
    assert bytes_hash(f"{tmp_path}/[ab].jsonl") != of["a"]


@pytest.mark.thorough
def test_reading_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    row = {"text": "x" * 10_000}
    (tmp_path / "big.jsonl").write_bytes(_jsonl([row]) * 3000)  # 30 MB
    with open(tmp_path / "big.json", "wb") as file:
        file.write(b"[" + b",".join([json.dumps(row).encode()] * 3000) + b"]")
    for name in ("big.jsonl", "big.json"):
        tracemalloc.start()
        assert sum(1 for _ in source_rows(str(tmp_path / name))) == 3000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000, name


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"data": ROWS}, indent=2),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
    ],
    ids=["wrapped", "wrapped over lines", "objects over lines"],
)
def test_objects_of_a_json_file_are_read_however_they_are_laid_out(tmp_path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert _good(list(source_rows(str(tmp_path / "a.json")))) == ROWS


def test_a_conversation_alone_in_a_json_file_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=2))
    assert _good(list(source_rows(str(tmp_path / "a.json")))) == [row]


def test_a_broken_first_line_of_a_json_file_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"text": \n' + _jsonl(ROWS[:2]))
    rows = list(source_rows(str(tmp_path / "a.json")))
    assert [row.problem for row in rows] == ["not JSON", None, None]


@pytest.mark.parametrize("levels", [101, 900, 5000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_deep_json_is_a_poison_row(tmp_path: Path, name: str, levels: int) -> None:
    deep = '{"a": ' * levels + "1" + "}" * levels
    text = f'{{"text": "x"}}\n{deep}\n' if name == "a.jsonl" else f'[{{"text": "x"}}, {deep}]'
    (tmp_path / name).write_text(text)
    if name == "a.json" and levels == 5000:
        with pytest.raises(DataError, match="not a whole JSON list"):
            list(source_rows(str(tmp_path / name)))
        return
    rows = list(source_rows(str(tmp_path / name)))
    assert [row.problem for row in rows] == [
        None,
        "not JSON" if levels == 5000 else "nested more than 100 levels deep",
    ]


def _odd_columns() -> dict[str, pa.Array]:
    """Values that Arrow holds and Python's types do not."""
    far = pa.array([2932897 * 2, 0], pa.int32()).view(pa.date32())
    return {
        "date": far,
        "inside": pa.StructArray.from_arrays([far], names=["date"]),
        "time": pa.array([2**62, 0], pa.int64()).view(pa.timestamp("ms")),
        "zone": pa.array([1, 0], pa.int64()).view(pa.timestamp("s", "No/Where")),
        "span": pa.array([2**62, 0], pa.int64()).view(pa.duration("s")),
        "map": pa.array([[(1, "a"), (1, "b")], []], pa.map_(pa.int64(), pa.string())),
        "bytes": pa.array([b"\xff", b""]),
        "decimal": pa.array([Decimal("1" * 70), Decimal(1)]),
        "number": pa.array([float("nan"), float("inf")]),
        "nothing": pa.nulls(2),
    }


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_values_without_a_form_in_python_cost_no_row_where_nobody_reads_them(
    tmp_path: Path, kind: str
) -> None:
    table = pa.table({"text": ["one", "two"], **_odd_columns()})
    path = tmp_path / f"odd.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        datasets.Dataset(table.drop_columns(["zone", "map"])).save_to_disk(str(path))
    rows = list(source_rows(str(path)))
    assert [(row.problem, row.row and row.row["text"]) for row in rows] == [
        (None, "one"),
        (None, "two"),
    ]
    assert '"18029-12-31"' in rows[0].text
    assert rows[1].row
    assert rows[1].row["date"] == date(1970, 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"p,q,p\n1,2,3\n", "a column name that stands twice: 'p'"),
        ("a.csv", b"p,\xff\n1,2\n", "a column name that is not UTF-8"),
        ("a.jsonl.gz", b"no archive", "cannot be read"),
        ("a.jsonl.zst", b"no archive", "cannot be read"),
        ("a.jsonl.bz2", b"no archive", "cannot be read"),
    ],
)
def test_a_header_that_loses_a_column_and_a_broken_archive_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(source_rows(str(tmp_path / name)))


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a column name that stands twice: 'text'"):
        list(source_rows(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("path", ["/tmp/[z-a]*.jsonl", "~nobody-here/x.jsonl", "/tmp/" + "x" * 300])
def test_a_path_that_no_file_system_takes_is_refused(path: str) -> None:
    with pytest.raises(DataError):
        list(source_rows(path))
    with pytest.raises(DataError):
        bytes_hash(path)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("[.jsonl", "[[]*"), ("^.jsonl", "[^]*"), ("-.jsonl", "[--]*"), ("a.jsonl", "[!^b]*")],
)
def test_odd_sets_of_letters_in_a_glob_mean_those_letters(tmp_path, name, pattern) -> None:
    (tmp_path / name).write_bytes(_jsonl(ROWS[:1]))
    (tmp_path / "b.jsonl").write_bytes(_jsonl(ROWS))
    assert _good(list(source_rows(f"{tmp_path}/{pattern}"))) == ROWS[:1]


def test_an_error_about_a_lone_surrogate_can_be_printed() -> None:
    assert str(DataError("split '\ud800'", "a", "b")).encode().startswith(b"split '\\ud800'")
