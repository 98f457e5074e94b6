"""Programs of completions run with limits that hold, with and without root; nothing is left."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError
from raydpo.labeling.stage import make_judge
from raydpo.labeling.verifiers import python_tests, sandbox
from raydpo.labeling.verifiers.sandbox import Limits, Ran, run_python

QUICK = Limits(timeout_seconds=20.0, cpu_seconds=5, memory_mib=512, files_mib=4)


@cache
def why_not_sealed() -> str:
    """Why this machine cannot limit programs; empty where it can."""
    try:
        run_python("pass", QUICK)
    except ConfigError as error:
        return str(error).splitlines()[0]
    return ""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders of programs are made here, and are gone after each test."""
    if why := why_not_sealed():
        pytest.skip(why)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def run(program: str, limits: Limits = QUICK) -> Ran:
    return run_python(program, limits)


def refused(action: str) -> str:
    """What a program prints whose action fails with an error of the system."""
    ran = run(
        f"import os, socket, subprocess\ntry:\n    {action}\nexcept OSError as e: print(e.errno)"
    )
    assert ran.status == 0
    return ran.output.strip()


def test_an_infinite_loop_ends_at_its_time() -> None:
    ran = run("while True: pass", Limits(timeout_seconds=0.5))
    assert (ran.finished, ran.status) == (False, -9)
    ran = run("import time\nwhile True: time.sleep(9)", Limits(timeout_seconds=0.5))
    assert (ran.finished, ran.status) == (False, -9)


@pytest.mark.thorough
def test_computing_ends_at_its_own_limit_whatever_the_program_does_about_it() -> None:
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    begun = time.monotonic()
    assert run(program, Limits(timeout_seconds=100.0, cpu_seconds=1)).status == -9
    assert time.monotonic() - begun < 90


def test_a_fork_bomb_starts_no_process() -> None:
    program = (
        "import os\n"
        "failed = 0\n"
        "for _ in range(1000):\n"
        "    try:\n"
        "        if os.fork() == 0: os._exit(0)\n"  # harmless if it is not refused
        "    except OSError: failed += 1\n"
        "print(failed)\n"
    )
    assert run(program).output == "1000\n"
    assert refused("subprocess.run(['true'])") == "1"
    assert refused("os.execv('/bin/true', ['true'])") == "1"


def test_threads_start_and_processes_do_not() -> None:
    assert run("import threading\nt = threading.Thread(target=print, args=['hi'])\nt.start(); t.join()").output == "hi\n"  # fmt: skip


def test_ten_gigabytes_are_not_there() -> None:
    ran = run("try: bytearray(10 << 30)\nexcept MemoryError: print('none')")
    assert (ran.output, ran.status) == ("none\n", 0)
    assert not run("held = []\nwhile True: held.append(bytearray(1 << 24))").finished
    assert refused("os.memfd_create('x')") == "1"


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("as it was")
    mode, modified = other.stat().st_mode, other.stat().st_mtime
    assert (
        run("open('here.txt', 'w').write('yes')\nprint(open('here.txt').read())").output == "yes\n"
    )
    for action in (
        f"open({str(other)!r}, 'w')",
        f"open({str(tmp_path / 'new.txt')!r}, 'w')",
        "open('../new.txt', 'w')",
        "open('/dev/shm/raydpo-new', 'w')",
        f"os.remove({str(other)!r})",
        f"os.rename({str(other)!r}, 'mine')",
        f"os.link({str(other)!r}, 'mine')",
        f"os.symlink('here', {str(tmp_path / 'link')!r})",
        f"os.mkdir({str(tmp_path / 'folder')!r})",
        f"os.truncate({str(other)!r}, 0)",
        f"os.chmod({str(other)!r}, 0o777)",
        f"os.utime({str(other)!r}, (1, 1))",
        f"os.setxattr({str(other)!r}, 'user.x', b'1')",
    ):
        assert refused(action) in {"1", "13", "18"}, action
    assert (other.read_text(), other.stat().st_mode, other.stat().st_mtime) == (
        "as it was",
        mode,
        modified,
    )
    assert {path.name for path in tmp_path.iterdir()} == {"other.txt", "scratch"}


def test_files_outside_and_variables_of_the_worker_are_not_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    (tmp_path / "key.txt").write_text("abc")
    assert run("import os; print('SECRET_TOKEN' in os.environ)").output == "False\n"
    for path in (tmp_path / "key.txt", "/etc/passwd", "/proc/self/environ"):
        assert refused(f"open({str(path)!r})") == "13", path
    assert refused(f"open('/proc/{os.getpid()}/environ')") == "13"


def test_there_is_no_network_and_no_signal_to_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert refused(f"socket.create_connection(('127.0.0.1', {port}))") == "1"
    assert refused("socket.socket(socket.AF_UNIX)") == "1"
    assert refused("os.kill(os.getppid(), 0)") == "1"
    assert refused("os.kill(-1, 0)") == "1"


def test_files_and_output_are_bounded() -> None:
    assert refused("open('x', 'wb').write(bytes(100 << 20))") == "27"
    many = "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'wb').write(bytes(1 << 20))"
    assert run(many).status == -9
    assert not run("while True: print('x' * 1000)").finished


def test_limits_are_not_raised() -> None:
    program = (
        "import resource\n"
        "for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
        "    try: resource.setrlimit(limit, (1 << 40, 1 << 40))\n"
        "    except (ValueError, OSError): print('no')\n"
    )
    assert run(program).output == "no\n" * 3


def test_deep_folders_and_folders_without_rights_are_removed() -> None:
    program = (
        "import os\nfor n in range(200):\n    os.mkdir('d')\n    os.chdir('d')\nos.mkdir('e', 0)"
    )
    assert run(program).finished


def test_where_limits_cannot_be_set_nothing_runs(tmp_path, monkeypatch) -> None:
    child = tmp_path / "child.py"
    source = sandbox._CHILD.read_text()
    child.write_text(source.replace("_LANDLOCK_CREATE, _LANDLOCK_ADD", "_NO, _LANDLOCK_ADD", 1)
                     .replace("_LANDLOCK_RESTRICT = 444", "_LANDLOCK_RESTRICT = 9999")
                     .replace("_LANDLOCK_CREATE", "_NO"))  # fmt: skip
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(ConfigError, match="could not be limited: this kernel has no Landlock"):
        run("print(1)")


PROGRAM = "def add(a, b):\n    return a + b\n"
ASSERTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def test_a_program_passes_all_of_its_tests_or_a_share() -> None:
    wrong = "Sure:\n```python\ndef add(a, b):\n    return a + abs(b)\n```"
    texts = [f"Sure:\n```python\n{PROGRAM}```\nDone.", PROGRAM, wrong, "no program at all", PROGRAM]
    tests = [ASSERTS, "\n".join(ASSERTS), [*ASSERTS, "assert add(1, -1) == 0"], ASSERTS, None]
    assert python_tests(texts, tests) == [1.0, 1.0, 0.0, 0.0, None]
    assert python_tests(texts, tests, share=True, processes=2) == [1.0, 1.0, 2 / 3, 0.0, None]


def test_a_program_that_ends_before_its_tests_does_not_pass() -> None:
    texts = ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"]
    assert python_tests(texts, ["assert False"] * 3) == [0.0] * 3


def test_a_program_reads_its_input_and_prints_its_output() -> None:
    double = "for line in open(0):\n    print(2 * int(line), end=' \\n')"
    tests = [[{"input": "1\n4\n", "output": "2\n8"}, {"input": "0", "output": "0\n"}]] * 3
    texts = [double, f"if __name__ == '__main__':\n    exec({double!r})", double + "\nexit(3)"]
    assert python_tests(texts, tests) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("tests", [[], 7, [{"in": "1"}], [{"input": "1"}]])
def test_other_tests_are_refused(tests: object) -> None:
    with pytest.raises(ValueError, match=r"the list of tests is empty|a test is "):
        python_tests([PROGRAM], [tests])


def test_programs_are_judged_through_the_configuration() -> None:
    reward = RewardConfig.model_validate(
        {
            "function": "raydpo.labeling.verifiers:python_tests",
            "options": {"share": True, "timeout_seconds": 1.0},
        }
    )
    tests = {"tests": [ASSERTS, ASSERTS]}
    judged = make_judge(reward)(["p", "p"], [PROGRAM, PROGRAM + "while True: pass"], tests)
    assert judged.values == [1.0, 0.0]
