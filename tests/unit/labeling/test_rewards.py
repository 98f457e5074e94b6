"""raydpo finds a reward function or explains its absence, and refuses values that are not
rewards.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raydpo.core.errors import ConfigError, DataError
from raydpo.labeling.rewards import (
    Refusal,
    judge_with_function,
    resolve_function,
    reward_or_refusal,
)

PROMPTS = ["p0", "p1", "p2"]
COMPLETIONS = ["a", "bb", "ccc"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module of reward functions in the working directory, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_rewards.py").write_text(
        "LIMIT = 3\n"
        "def length(prompts, completions):\n"
        "    return [len(c) for c in completions]\n"
        "class Rules:\n"
        "    @staticmethod\n"
        "    def brevity(prompts, completions):\n"
        "        return [-len(c) for c in completions]\n"
    )
    yield tmp_path / "own_rewards.py"
    sys.modules.pop("own_rewards", None)


def test_a_function_beside_the_working_directory_is_found(module):
    assert resolve_function("own_rewards:length")(PROMPTS, COMPLETIONS) == [1, 2, 3]
    assert resolve_function("own_rewards:Rules.brevity")(PROMPTS, COMPLETIONS) == [-1, -2, -3]


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_rewards", "package.module:name"),
        ("own_rewards:", "package.module:name"),
        ("no_such_rewards:length", "there is no module 'no_such_rewards'"),
        ("own_rewards.deeper:length", "there is no module 'own_rewards.deeper'"),
        ("own_rewards:width", "public names are Rules, length"),
        ("own_rewards:LIMIT", "is a int"),
    ],
)
def test_what_cannot_be_called_is_explained(path, said):
    with pytest.raises(ConfigError, match=said):
        resolve_function(path)


def test_a_missing_import_of_the_module_is_named(module):
    module.with_name("needs_more.py").write_text("import no_such_dependency\n")
    with pytest.raises(ConfigError, match=r"(?s)'no_such_dependency'.*needs_more imports it"):
        resolve_function("needs_more:length")


def test_a_module_that_fails_is_named(module):
    module.with_name("fails.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        resolve_function("fails:length")


@pytest.mark.parametrize(
    "path", ["math:fmod", "os:link", "os.path:join", "builtins:len", "own_rewards:rename"]
)
def test_functions_of_pythons_own_library_are_refused(module, path):
    module.write_text("from os import rename\n")
    with pytest.raises(ConfigError, match="of Python's own library"):
        resolve_function(path)


def test_what_is_no_number_is_refused_and_never_scored():
    two, huge = torch.ones(2), 10**400
    for value in (None, math.nan, math.inf, "0.5", [1.0], object(), {"x": 1}, two, huge, 1j):
        assert isinstance(reward_or_refusal(value), Refusal), value
    for value, reward in ((2, 2.0), (np.float32(0.5), 0.5), (True, 1.0), (-1e300, -1e300)):
        assert reward_or_refusal(value) == reward


def test_refused_rewards_leave_the_others_alone():
    judged = judge_with_function(
        lambda _p, _c: [1.0, None, float("nan")], "x", PROMPTS, COMPLETIONS
    )
    assert judged.values[0] == 1.0
    assert [v.reason for v in judged.values[1:] if isinstance(v, Refusal)] == [
        "the reward is None, not a number",
        "the reward is nan",
    ]


def test_arrays_are_lists_of_rewards():
    for values in (np.arange(3) / 2, (np.arange(3) / 2)[:, None], torch.arange(3.0) / 2):
        judged = judge_with_function(lambda _p, _c, v=values: v, "x", PROMPTS, COMPLETIONS)
        assert judged.values == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "result", [[1.0, 2.0], [], 3.0, None, "abc", {"a": 1, "b": 2, "c": 3}, {1, 2, 3}]
)
def test_a_result_of_another_shape_is_an_error(result):
    with pytest.raises(DataError, match="for 3 completions"):
        judge_with_function(lambda _p, _c: result, "x", PROMPTS, COMPLETIONS)


def test_a_completion_on_which_the_function_raises_is_refused_alone():
    def strict(prompts, completions):
        return [1.0 / (len(c) - 2) for c in completions]

    judged = judge_with_function(strict, "x", PROMPTS, COMPLETIONS)
    assert judged.values[0] == -1.0
    assert judged.values[2] == 1.0
    assert "ZeroDivisionError" in judged.values[1].reason


def test_a_function_that_always_raises_is_an_error():
    def broken(prompts, completions):
        raise RuntimeError("no licence")

    with pytest.raises(DataError, match="RuntimeError: no licence"):
        judge_with_function(broken, "x", PROMPTS, COMPLETIONS)


def test_no_completions_ask_the_function_nothing() -> None:
    """As of a part whose prompts were all refused by the sampler."""
    assert judge_with_function(lambda p, c: [max(map(len, c))], "m:f", [], []).values == []
