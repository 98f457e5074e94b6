"""Rewards depend on the user's own modules and on declared files, and on nothing installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.own_code import OwnCode, module_file, own_code
from raydpo.core.own_frames import is_own, own_lines
from raydpo.labeling.reward_process import code_of as code_of_reward
from raydpo.labeling.rewards import judge_with_function, resolve_function
from raydpo.labeling.stage import scorer_inputs

FILES = {
    "mine_rewards.py": "import json\nimport numpy\nimport mine_words\n"
    "def length(prompts, completions):\n"
    "    import mine_late\n"
    "    return [mine_words.LIMIT - len(c) for c in completions]\n",
    "mine_words.py": "from mine_package.inner import deep\nfrom mine_package import beside\nLIMIT = 9\n",
    "mine_late.py": "import mine_rewards\n",
    "mine_unused.py": "",
    "mine_package/__init__.py": "",
    "mine_package/beside.py": "",
    "mine_package/inner/__init__.py": "from . import deeper\n",
    "mine_package/inner/deep.py": "from ..above import *\nfrom .deeper import x\n",
    "mine_package/inner/deeper.py": "x = 1\n",
    "mine_package/above.py": "y = 1\n",
    "mine_alone.py": "import json\ndef length(prompts, completions):\n    return [0.0] * len(prompts)\n",
}
IMPORTED = [name for name in FILES if name not in ("mine_unused.py", "mine_alone.py")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a reward function and the modules that it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        sys.modules.pop(name)


def code_of(path: str, depends_on: tuple[str, ...] = ()) -> OwnCode:
    return code_of_reward(RewardConfig(function=path, depends_on=depends_on))


@pytest.mark.thorough
@pytest.mark.parametrize("name", IMPORTED)
def test_a_change_of_any_imported_module_of_the_users_own_is_seen(folder: Path, name: str) -> None:
    before = code_of("mine_rewards:length").hashes
    (folder / name).write_text(FILES[name] + "# changed\n")
    assert code_of("mine_rewards:length").hashes != before


def test_what_is_not_imported_or_is_installed_is_not_hashed(folder: Path) -> None:
    before = code_of("mine_rewards:length").hashes
    (folder / "mine_unused.py").write_text("# changed\n")
    assert code_of("mine_rewards:length").hashes == before
    assert not any("numpy" in name or "json" in name for name in before)


def test_a_function_that_imports_nothing_of_its_own_keeps_the_key_of_version_0_1(
    folder: Path,
) -> None:
    import hashlib

    inputs = scorer_inputs((RewardConfig(function="mine_alone:length"),))
    source = hashlib.sha256((folder / "mine_alone.py").read_bytes()).hexdigest()
    assert inputs == {"source of mine_alone:length": source}


def test_the_users_code_is_imported_in_other_processes_only(folder: Path) -> None:
    code_of("mine_rewards:length")
    assert not [name for name in sys.modules if name.startswith("mine_")]
    assert str(folder) not in sys.path


def test_nothing_is_imported_to_find_what_is_imported(folder: Path) -> None:
    (folder / "mine_alone.py").write_text(
        FILES["mine_alone.py"] + "def later():\n    import mine_x\n"
    )
    (folder / "mine_x.py").write_text("raise SystemExit\n")
    assert "module mine_x" in code_of("mine_alone:length").hashes


def test_modules_in_folders_without_an_init_are_found(folder: Path) -> None:
    inner = folder / "mine_folders/of/rewards"
    inner.mkdir(parents=True)
    (inner / "lengths.py").write_text(FILES["mine_alone.py"])
    name = "mine_folders.of.rewards.lengths"
    assert module_file(name) == inner / "lengths.py"
    hashes = own_code(name, module_file(name), ()).hashes
    (inner / "lengths.py").write_text(FILES["mine_alone.py"].replace("0.0", "1.0"))
    assert own_code(name, module_file(name), ()).hashes != hashes


def test_declared_files_and_folders_are_hashed_by_content(folder: Path) -> None:
    (folder / "words.txt").write_text("good\n")
    (folder / "lists/deep").mkdir(parents=True)
    (folder / "lists/deep/bad.txt").write_text("bad\n")
    declared = RewardConfig.model_validate(
        {"function": "mine_alone:length", "depends_on": ["words.txt", "lists"]}
    )
    before = scorer_inputs((declared,))
    (folder / "lists/.hidden").write_text("x")
    assert scorer_inputs((declared,)) == before
    (folder / "lists/deep/bad.txt").write_text("worse\n")
    changed = scorer_inputs((declared,))
    assert {name for name in before if before[name] != changed[name]} == {
        "file lists of mine_alone:length"
    }
    (folder / "words.txt").write_text("great\n")
    assert scorer_inputs((declared,)) != changed


@pytest.mark.parametrize("path", ["absent.txt", "empty", "absent/folder"])
def test_a_declared_file_that_is_not_there_is_refused(folder: Path, path: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"depends_on '{folder}/{path}'"):
        code_of("mine_alone:length", (path,))


def test_files_that_a_source_names_and_nobody_declares_are_told(folder: Path) -> None:
    (folder / "words.txt").write_text("good\n")
    (folder / "mine_alone.py").write_text(
        '"""Reads words.txt."""\nWORDS = open("words.txt").read()\nOTHER = "absent.txt"\n'
        + FILES["mine_alone.py"]
    )
    assert code_of("mine_alone:length").undeclared == ("words.txt",)
    assert code_of("mine_alone:length", ("words.txt",)).undeclared == ()


def test_installed_packages_and_python_are_not_the_users_own() -> None:
    import numpy

    assert is_own(__file__)
    for file in (numpy.__file__, importlib.__file__, sys.modules["raydpo"].__file__, "<string>"):
        assert not is_own(str(file))


def test_a_fault_is_told_by_the_users_own_lines(folder: Path) -> None:
    (folder / "mine_words.py").write_text(
        "import json\ndef score(text):\n    return json.loads(text)['score']\n"
    )
    (folder / "mine_rewards.py").write_text(
        "import mine_words\ndef length(prompts, completions):\n"
        "    return [mine_words.score(c) for c in completions]\n"
    )
    with pytest.raises(DataError) as caught:
        judge_with_function(
            resolve_function("mine_rewards:length"), "mine_rewards:length", ["p"] * 2, ["a", "b"]
        )
    lines = str(caught.value).splitlines()
    assert "raised JSONDecodeError: Expecting value" in lines[0]
    code = "return json.loads(text)['score']"
    assert lines[-3] == f"    {folder / 'mine_words.py'}:3, in score: {code}"
    called = "return [mine_words.score(c) for c in completions]"
    assert lines[-4] == f"    {folder / 'mine_rewards.py'}:3, in length: {called}"
    assert lines[-2].startswith("  rule: a reward function is `def reward(prompts, completions,")
    assert len(lines) == 5


def test_a_fault_of_one_completion_says_where(folder: Path) -> None:
    (folder / "mine_alone.py").write_text(
        "def length(prompts, completions):\n    return [1 / len(c) for c in completions]\n"
    )
    function = resolve_function("mine_alone:length")
    judged = judge_with_function(function, "mine_alone:length", ["p", "p"], ["", "a"])
    assert judged.values[1] == 1.0
    reason = f"raised ZeroDivisionError: division by zero at {folder / 'mine_alone.py'}:2, in"
    assert reason in str(judged.values[0])


def test_a_module_that_fails_is_told_by_its_line(folder: Path) -> None:
    for text, line in (("x = 1\n1 / 0\n", 2), ("def broken(:\n", 1), ("exit(3)\n", 1)):
        (folder / "mine_broken.py").write_text(text)
        with pytest.raises(ConfigError, match=f"mine_broken.py:{line}, in <module>") as caught:
            resolve_function("mine_broken:length")
        assert own_lines(caught.value.__cause__ or caught.value)
