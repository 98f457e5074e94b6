"""Verify completions as Python programs, by the tests that their prompts bring."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

from raydpo.labeling.verifiers.sandbox import Limits, run_python

_FENCED: Final = re.compile(
    r"```(?:python3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)

#: A test: Python source, or what a program reads and what it has to print.
_Test = str | tuple[str, str]


def python_tests(
    completions: list[str],
    tests: list[Any],
    share: bool = False,
    timeout_seconds: float = 10.0,
    cpu_seconds: int = 5,
    memory_mib: int = 1024,
    files_mib: int = 64,
    processes: int = 1,
) -> list[float | None]:
    """Return 1.0 where a completion's program passes all of its tests, else 0.0.

    The program is the last block of Python code (```), else the whole completion. Each test runs it
    in a process and a folder of its own, with limits: see `sandbox.py`.

    Args:
        completions: texts.
        tests: of each completion a test or a list of them; None gives None. A text is Python source
            that runs in the program's namespace after it, and fails if it raises. A mapping has
            `input`, which the program reads from its standard input, and `output`, which it has to
            print; white space at the ends of lines does not count.
        share: whether the reward is the share of the tests that pass.
        timeout_seconds: time for one test.
        cpu_seconds: time that one test may compute.
        memory_mib: memory of one test.
        files_mib: size of the files that one test writes.
        processes: programs that run at the same time.

    Raises:
        ValueError: the tests of a completion are something else, or a limit is not positive.
        ConfigError: this machine cannot limit programs.
    """
    limits = Limits(timeout_seconds, cpu_seconds, memory_mib, files_mib)
    wanted = [None if one is None else _tests(one) for one in tests]

    def judge(text: str, its_tests: list[_Test] | None) -> float | None:
        return None if its_tests is None else _passed(_program(text), its_tests, limits, share)

    with ThreadPoolExecutor(max(1, processes)) as pool:
        return list(pool.map(judge, completions, wanted))


def _program(text: str) -> str:
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def _tests(given: Any) -> list[_Test]:
    tests = [_test(one) for one in (given if isinstance(given, list) else [given])]
    if not tests:
        raise ValueError("the list of tests is empty")
    return tests


def _test(given: Any) -> _Test:
    if isinstance(given, str):
        return given
    if isinstance(given, dict):
        values = cast("dict[str, Any]", given)
        text, output = values.get("input", ""), values.get("output")
        if (
            values.keys() <= {"input", "output"}
            and isinstance(text, str)
            and isinstance(output, str)
        ):
            return text, output
    raise ValueError(
        f"a test is {str(given)[:100]!r}: it is Python source, or a mapping of `input` and `output`"
    )


def _passed(program: str, tests: list[_Test], limits: Limits, share: bool) -> float:
    passed = 0
    for test in tests:
        if _passes(program, test, limits):
            passed += 1
        elif not share:
            return 0.0
    return passed / len(tests)


def _passes(program: str, test: _Test, limits: Limits) -> bool:
    if isinstance(test, str):
        return run_python(program, limits, tests=test).finished
    text, output = test
    ran = run_python(program, limits, text=text)
    return ran.status == 0 and _lines(ran.output) == _lines(output)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
