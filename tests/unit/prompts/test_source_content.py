"""A source's fingerprint covers its rows in order, not the form of its files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.config.job import PromptsConfig
from raydpo.core.differences import difference
from raydpo.core.fingerprints import Fingerprint
from raydpo.prompts import rows
from raydpo.prompts.rows import source_fingerprint

ROWS = [{"prompt": f"film {number}", "id": number} for number in range(40)]


def of(path: Path, **section: Any) -> Fingerprint:
    return source_fingerprint(PromptsConfig(path=str(path), **section))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    (tmp_path / "original.jsonl").write_text(lines(ROWS))
    return tmp_path / "original.jsonl"


def told(before: Fingerprint, after: Fingerprint) -> str:
    found = {"format": 3, "inputs": {"data": str(before)}, "settings": {}}
    told = {**found, "made_of": {"data": before.made_of}}
    return difference(told, 3, {"data": after}, {})


def test_the_same_rows_are_the_same_source_however_they_are_written(
    original: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys.jsonl").write_text(
        "\n\n".join(json.dumps(dict(reversed(row.items())), indent=None) for row in ROWS)
    )
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(original.read_bytes()))
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=3))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=7)
    (tmp_path / "many").mkdir()
    (tmp_path / "many/a.jsonl").write_text(lines(ROWS[:11]))
    (tmp_path / "many/b.jsonl").write_text(lines(ROWS[11:]))
    names = ["keys.jsonl", "packed.jsonl.gz", "list.json", "rows.parquet", "many"]
    assert {of(tmp_path / name) for name in names} == {of(original)}


def test_another_row_or_order_is_another_source_and_the_place_is_named(
    original: Path, tmp_path: Path
) -> None:
    before = of(original)
    other = tmp_path / "other.jsonl"
    other.write_text(lines([*ROWS[:5], {**ROWS[5], "prompt": "x"}, *ROWS[6:]]))
    assert told(before, of(other)) == "input 'data' changed (rows 4 to 5)"
    other.write_text(lines([*ROWS[1::-1], *ROWS[2:]]))
    assert told(before, of(other)) == "input 'data' changed (rows 0 to 1)"
    other.write_text(lines(ROWS[:-1]))
    assert told(before, of(other)) == "input 'data' changed (rows: 40 -> 39)"


def test_a_row_that_cannot_be_read_counts_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    found: set[Fingerprint] = set()
    for line in (b"\xff", b"[]", b"{", b'{"a": NaN}', b"[" * 5000):
        file.write_bytes(b'{"prompt": "a"}\n' + line + b"\n")
        found.add(of(file))
    assert len(found) == 5


def test_rows_beyond_the_limit_do_not_count(original: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(lines([*ROWS, *ROWS]))
    assert of(tmp_path / "more.jsonl", limit=40) == of(original)
    assert of(tmp_path / "more.jsonl") != of(original)


def test_rows_are_not_read_again_while_the_bytes_are_those_that_a_stage_has_seen(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PromptsConfig(path=str(original))
    before = source_fingerprint(section)
    manifest = {"inputs": {"data": str(before)}, "made_of": {"data": before.made_of}}
    rows._of_rows.cache_clear()
    monkeypatch.setattr(rows, "source_rows", lambda *_: pytest.fail("read again"))
    again = source_fingerprint(section, manifest)
    assert (again, again.made_of) == (before, before.made_of)
    monkeypatch.undo()
    original.write_text(lines(ROWS[1:]))
    assert source_fingerprint(section, manifest) != before


def test_there_are_few_runs_however_many_rows(tmp_path: Path) -> None:
    for count in (1, 31, 32, 33, 64, 65, 1000):
        file = tmp_path / f"{count}.jsonl"
        file.write_text(lines([{"prompt": str(n)} for n in range(count)]))
        found = of(file).made_of
        assert found["rows"] == count
        assert 1 <= len(found) - 2 <= 32
