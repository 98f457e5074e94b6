"""Run the tests of every fault and write `docs/faults.md`: `make test-faults`.

The tests are those of `ROWS`; `--from report.xml ...` reads reports of finished tests instead. The
exit status is that of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.faults.rows import ROWS, Row

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "faults.md"
_HEAD: Final = """\
# Faults

This page lists what raydpo guarantees under each fault, and the tests that inject it. `make test-faults` runs them and
writes this page. The tests kill at points of the code, or at each operation in turn, and never after a sleep alone.
They compare with an undisturbed run: equal ids, equal content, nothing lost and nothing twice. In
[soak.md](soak.md) a seed chooses the faults.

| fault | guarantee | tests | last result |
| --- | --- | --- | --- |
"""


def page(results: dict[str, str]) -> str:
    """The page, with the last result of each row by its fault."""
    lines = [
        f"| {row.fault} | {row.owed} | {_tests(row)} | {results.get(row.fault, 'not run')} |"
        for row in ROWS
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _tests(row: Row) -> str:
    files = sorted({test.partition("::")[0] for test in row.tests})
    links = [f"[{Path(file).stem}](../tests/{file})" for file in files]
    return ", ".join([*links, *([f"missing: {row.missing}"] if row.missing else [])])


def results_on(text: str) -> dict[str, str]:
    """The last result on a page of each fault."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cell[0]: cell[-1] for cell in cells if len(cell) == 4}


def outcomes(reports: list[Path]) -> dict[str, list[str]]:
    """How each test function ended, each of its cases, from reports in JUnit's format."""
    ended: dict[str, list[str]] = defaultdict(list)
    for case in (case for report in reports for case in ElementTree.parse(report).iter("testcase")):
        name = f"{case.get('classname')}::{str(case.get('name')).partition('[')[0]}"
        bad = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        ended[name].append(bad[0] if bad else "passed")
    return ended


def result_of(row: Row, ended: dict[str, list[str]], day: str) -> str:
    """One row's result in words."""
    if not row.tests:
        return "no test"
    cases: list[str] = []
    for test in row.tests:
        file, _, function = test.partition("::")
        module = "tests." + file.removesuffix(".py").replace("/", ".")
        cases += ended.get(f"{module}::{function}") or ["not run"]
    counts = {kind: cases.count(kind) for kind in dict.fromkeys(sorted(cases))}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) + f", {day}"


def main(arguments: list[str]) -> int:
    """Run the tests of all rows, or read what was run, then write the page."""
    if arguments[:1] == ["--from"]:
        _write(outcomes([Path(report) for report in arguments[1:]]))
        return 0
    names = [f"tests/{test}" for row in ROWS for test in row.tests]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *names, *arguments, f"--junitxml={report}"]
        environment = {**os.environ, "RAYDPO_TEST_ALL_STAGES": "1"}  # see test_lost_nodes
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        _write(outcomes([report]))
    return status


def _write(ended: dict[str, list[str]]) -> None:
    day = datetime.now(UTC).date().isoformat()
    PAGE.write_text(page({row.fault: result_of(row, ended, day) for row in ROWS}), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
