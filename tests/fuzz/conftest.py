"""Report how many inputs each target has seen."""

from __future__ import annotations

from typing import Any

from tests.fuzz.fuzzing import SECONDS, fuzz

__all__ = ["fuzz"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, ())]
    lines = [
        f"{inputs:>9,} inputs  {report.nodeid.rpartition('::')[2]}"
        for report in reports
        for name, inputs in getattr(report, "user_properties", ())
        if name == "inputs"
    ]
    if lines and SECONDS:
        terminalreporter.section("fuzzed")
        terminalreporter.write_line("\n".join(sorted(lines)))
