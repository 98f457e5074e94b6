"""Metadata of a row is JSON: every value of a source has one place in it, and old tables have none."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from raydpo.core.errors import DataError
from raydpo.core.metadata import metadata_columns, metadata_count, metadata_text
from raydpo.core.tables import (
    CANDIDATES,
    LATER_COLUMNS,
    PROMPTS,
    declared,
    hashed_row,
    table_from_rows,
)

ROW = {"prompt_id": "a", "prompt": "the film", "messages": None, "prompt_ids": [1]}


def test_values_that_json_lacks_become_text() -> None:
    values = {
        "when": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "price": Decimal("1.10"),
        "odd": float("nan"),
        "raw": b"ab",
        "nested": {1: [date(2026, 1, 2), None]},
        "absent": None,
        "flag": False,
    }
    assert json.loads(metadata_text(values) or "") == {
        "when": "2026-01-02T03:00:00+00:00",
        "day": "2026-01-02",
        "price": "1.10",
        "odd": "nan",
        "raw": "YWI=",
        "nested": {"1": ["2026-01-02", None]},
        "flag": False,
    }


def test_equal_values_give_equal_text_and_none_gives_none() -> None:
    assert (
        metadata_text({"b": 1, "a": "ü"})
        == metadata_text({"a": "ü", "b": 1})
        == '{"a": "ü", "b": 1}'
    )
    assert metadata_text({"a": None}) is None
    assert metadata_text({}) is None


def test_rows_become_columns_in_their_order() -> None:
    texts = ['{"a": 1}', None, '{"a": [2], "b": "x"}']
    assert metadata_columns(texts) == {"a": [1, None, [2]], "b": [None, None, "x"]}
    assert metadata_columns([None]) == {}
    assert metadata_count([{"metadata": text} for text in texts]) == {"with_metadata": 2}
    assert metadata_count([{}]) == {}


def test_a_table_of_an_earlier_version_reads_with_nulls() -> None:
    for schema in (PROMPTS, CANDIDATES):
        old = pa.schema([field for field in schema if field.name not in LATER_COLUMNS])
        assert declared(old.empty_table(), schema, "here").schema.equals(schema)
    other = pa.schema([pa.field("prompt_id", pa.string())]).empty_table()
    with pytest.raises(DataError, match="here has the schema"):
        declared(other, PROMPTS, "here")


def test_a_row_without_metadata_hashes_as_it_did_before_the_column() -> None:
    [row] = table_from_rows([ROW], PROMPTS).to_pylist()
    assert row["metadata"] is None
    assert hashed_row(row) == ROW
    told = {**ROW, "metadata": '{"a": 1}'}
    assert hashed_row(told) == told


def test_a_row_may_leave_out_later_columns_alone() -> None:
    with pytest.raises(DataError, match="a row has the columns"):
        table_from_rows([{k: v for k, v in ROW.items() if k != "messages"}], PROMPTS)
