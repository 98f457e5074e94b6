"""Readers and rows: files of every format, damaged anywhere, and values of every type."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from raydpo.config.job import PreferencesConfig, PromptsConfig, SftConfig
from raydpo.core.tables import SCHEMAS, table_from_rows
from raydpo.prompts.examples import example_parts
from raydpo.prompts.preferences import preference_parts
from raydpo.prompts.rows import source_fingerprint
from raydpo.prompts.sources import SourceRow, source_rows
from raydpo.prompts.stage import prompt_parts
from tests.conftest import make_tokenizer
from tests.fuzz.fuzzing import Fuzz, allowed

pytestmark = pytest.mark.thorough

ROWS = [
    {"prompt": f"the film {i}", "chosen": " good", "rejected": " bad", "n": i} for i in range(3)
]


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


JSONL = "\n".join(map(json.dumps, ROWS)).encode()
FILES = {
    "a.jsonl": JSONL,
    "a.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "b.json": json.dumps(ROWS).encode(),
    "a.csv": b'prompt,chosen,rejected\nthe film, good, bad\n"a\nb",c,d\n',
    "a.txt": b"the film\nthe plot\n",
    "a.jsonl.gz": gzip.compress(JSONL),
    "a.csv.bz2": bz2.compress(b"text\na\n"),
    "a.parquet": parquet_of(ROWS),
}


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content cut, with bytes replaced by others, or put in."""
    at = st.integers(0, len(content))
    return st.one_of(
        at.map(lambda end: content[:end]),
        st.builds(
            lambda start, length, other: content[:start] + other + content[start + length :],
            at,
            st.integers(0, 8),
            st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"[", b"\\ud800", b"\xff", b"\0"]),
        ),
    )


def read_all(path: str) -> None:
    def read() -> None:
        for row in source_rows(path):
            assert (row.row is None) == (row.problem is not None)
            row.text.encode()

    allowed(read)
    allowed(source_fingerprint, PromptsConfig(path=path))


@pytest.mark.parametrize("name", FILES)
def test_fuzz_files(fuzz: Fuzz, tmp_path: Path, name: str) -> None:
    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        read_all(str(tmp_path / name))

    # A Parquet file of which bytes were turned is beyond what Arrow promises to survive.
    inputs = st.binary(max_size=60) if name == "a.parquet" else damaged(FILES[name])
    cut = st.integers(0, len(FILES[name])).map(lambda end: FILES[name][:end])
    fuzz(read, st.one_of(inputs, cut, st.binary(max_size=60)), 40)


TYPES = [
    *(pa.timestamp(unit) for unit in ("ms", "us", "ns")),
    pa.timestamp("ms", "Europe/Berlin"),
    pa.timestamp("ms", "No/Where"),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    pa.time64("us"),
    pa.date64(),
    pa.int64(),
    pa.uint64(),
    pa.float64(),
]


def column(kind: pa.DataType, numbers: list[int], nested: int) -> pa.Array:
    """Numbers seen as another type, alone or inside of lists, objects and maps."""
    values: Any = pa.array(numbers, pa.int64()).view(kind)
    if nested == 1:
        return pa.StructArray.from_arrays([values], names=["inner"])
    if nested == 2:
        return pa.ListArray.from_arrays(list(range(len(numbers) + 1)), values)
    if nested == 3:
        keys = pa.array(["k"] * len(numbers))
        return pa.MapArray.from_arrays(list(range(len(numbers) + 1)), keys, values)
    return values


def test_fuzz_arrow_values(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def read(array: pa.Array) -> None:
        table = pa.table({"text": ["x"] * len(array), "odd": array})
        try:
            pq.write_table(table, path)
        except pa.ArrowException:
            return  # Parquet does not hold it
        rows = list(source_rows(str(path)))
        assert [row.row and row.row["text"] for row in rows] == ["x"] * len(array)
        assert all(row.text for row in rows)

    numbers = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3)
    fuzz(read, st.builds(column, st.sampled_from(TYPES), numbers, st.integers(0, 3)), 60)


def test_fuzz_dataset_folders(fuzz: Fuzz, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(whole))
    names = [file.relative_to(whole) for file in whole.rglob("*.json")]

    def read(given: tuple[Path, bytes]) -> None:
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        (folder / given[0]).write_bytes(given[1])
        read_all(str(folder))

    def contents(name: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
        return st.tuples(st.just(name), damaged((whole / name).read_bytes()) | st.binary())

    fuzz(read, st.sampled_from(names).flatmap(contents), 15)


def test_fuzz_paths(fuzz: Fuzz) -> None:
    pieces = st.sampled_from(
        ["/", "*", "**", "?", "[", "]", "!", "~", "..", "://", "s3", "file", "a.jsonl"]
    )
    paths = st.lists(pieces | st.text(max_size=3), max_size=8).map("".join)
    inside = paths.map(lambda path: f"/nowhere-at-all/{path}")
    # The configuration refuses a NUL, a lone surrogate and an empty path; hubs are not asked here.
    usable = inside.filter(lambda p: "\0" not in p and p.isprintable())
    fuzz(lambda path: read_all(path), usable, 60)


WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "\n", "</s>", "<s>", "a</s>b", "\n\nHuman: a\n\nAssistant: b", "é🎬"]
    ),
    st.sampled_from(['[{"role": "user", "content": "a"}]', "[", "[1]", "nan", "true", "{}"]),
)
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "name", "reasoning"]),
        WORDS
        | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt"])
        | st.none(),
        max_size=4,
    ),
    max_size=4,
)
ODD = st.one_of(
    WORDS,
    MESSAGES,
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.dates(),
    st.decimals(),
    st.binary(max_size=4),
    st.lists(WORDS | st.floats() | st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), WORDS, max_size=2),
)
COLUMNS = [
    *("prompt", "chosen", "rejected", "completion", "completions", "ratings", "scores", "label"),
    *("messages", "conversations", "system", "tools", "instruction", "input", "output", "question"),
    *("text", "id", "history", "response_0", "response_1", "better_response_id", "n"),
]
ROW = st.dictionaries(st.sampled_from(COLUMNS), ODD, max_size=6)


def sections() -> list[tuple[str, Any, Any]]:
    """Each table with a way to read rows into it: name, function, section."""
    cut = {"max_prompt_tokens": 16, "max_completion_tokens": 8}
    policies = {"too_long_prompt": "keep_end", "too_long_completion": "keep_start"}
    layouts = ("auto", "explicit", "implicit", "transcript", "sharegpt", "ranked", "unpaired")
    return [
        *(
            ("preferences", preference_parts, PreferencesConfig(path="x", layout=layout, **cut, **policies))
            for layout in layouts
        ),
        ("preferences", preference_parts, PreferencesConfig(path="x", id_column="id")),
        *(
            ("prompts", prompt_parts, PromptsConfig(path="x", max_prompt_tokens=16, too_long=policy))
            for policy in ("quarantine", "keep_start", "keep_end")
        ),
        ("prompts", prompt_parts, PromptsConfig(path="x", chat="always", system_prompt="be kind")),
        ("prompts", prompt_parts, PromptsConfig(path="x", column="n", id_column="id")),
        *(("examples", example_parts, SftConfig(data="x", loss_on=on)) for on in ("all", "completion")),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def test_fuzz_rows(fuzz: Fuzz, tokenizer: Any) -> None:
    def read(given: tuple[tuple[str, Any, Any], list[dict[str, Any]]]) -> None:
        (table, make_parts, section), rows = given
        source = [SourceRow(index, row, None) for index, row in enumerate(rows)]
        for part in allowed(lambda: list(make_parts(section, source, tokenizer, 2))) or []:
            table_from_rows(part.rows, SCHEMAS[table])
            table_from_rows(part.quarantined, SCHEMAS["quarantine"])

    plausible = st.fixed_dictionaries({}, optional=dict.fromkeys(("prompt", "messages"), ODD))
    rows = st.lists(
        ROW | st.builds(lambda a, b: {**a, **b}, plausible, ROW), min_size=1, max_size=4
    )
    fuzz(read, st.tuples(st.sampled_from(sections()), rows), 120)
