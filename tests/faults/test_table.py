"""docs/faults.md: every row has tests that exist, and the page says what the rows say."""

import ast
from pathlib import Path

from tests.faults.rows import ROWS
from tests.faults.table import PAGE, ROOT, outcomes, page, result_of, results_on


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_of_a_row_exists() -> None:
    for row in ROWS:
        assert row.tests or row.missing, row.fault
        for test in row.tests:
            file, _, function = test.partition("::")
            assert function in functions_of(file), test


def test_the_page_is_written_from_the_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(results_on(text))
    assert set(results_on(text)) - {"fault", "---"} == {row.fault for row in ROWS}


def test_a_row_says_how_each_case_of_its_tests_ended(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.fault == "the same text under two ids")
    name = "test_the_same_text_under_two_ids_is_sampled_twice"
    where = 'classname="tests.integration.test_sampling"'
    report = tmp_path / "report.xml"
    report.write_text(
        f'<testsuite><testcase {where} name="{name}[random]"/>'
        f'<testcase {where} name="{name}[real]"><failure/></testcase></testsuite>'
    )
    assert result_of(row, outcomes([report]), "2026-11-29") == "1 failure, 1 passed, 2026-11-29"
    assert result_of(row, {}, "2026-11-29") == "1 not run, 2026-11-29"
