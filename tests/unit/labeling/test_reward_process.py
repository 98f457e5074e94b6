"""raydpo isolates completions whose reward function ends its process, hangs or leaks."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from raydpo.config.job import RewardConfig
from raydpo.core import halving, own_process
from raydpo.core.errors import ConfigError, DataError
from raydpo.core.own_process import Ended
from raydpo.labeling.reward_process import RewardProcess, look_at
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.labeling.stage import make_judge, score_part

pytestmark = pytest.mark.thorough

SOURCE = """
import ctypes, os, signal, sys, time
def length(prompts, completions):
    return [len(c) for c in completions]
def ends(prompts, completions):
    return [os._exit(3) if "bad" in c else len(c) for c in completions]
def crashes(prompts, completions):
    return [ctypes.string_at(0) if "bad" in c else len(c) for c in completions]
def hangs(prompts, completions):
    while any("bad" in c for c in completions):
        time.sleep(0.01)
    return [len(c) for c in completions]
def raises_or_crashes(prompts, completions):
    if any("worse" in c for c in completions): raise KeyError("worse")
    return crashes(prompts, completions)
def exits(prompts, completions):
    return [sys.exit("no licence") if "bad" in c else len(c) for c in completions]
def once(prompts, completions):
    if not os.path.exists("seen"):
        open("seen", "w"); os.kill(os.getpid(), signal.SIGKILL)
    return [len(c) for c in completions]
HELD = []
def leaks(prompts, completions):
    HELD.append(bytearray(80 << 20)); HELD[-1][::4096] = b"x" * len(HELD[-1][::4096])
    return [len(HELD)] * len(completions)
def takes_all(prompts, completions):
    while any("bad" in c for c in completions): leaks(prompts, completions)
    return [len(c) for c in completions]
def starts_others(prompts, completions):
    if os.fork() == 0: time.sleep(600)
    os._exit(3)
"""
COMPLETIONS = [f"a completion {'bad ' if i in (3, 12) else ''}{i}" for i in range(20)]
PROMPTS = ["the film"] * 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `odd_rewards.py`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_rewards.py").write_text(SOURCE)
    return tmp_path


def judged(name: str, **limits: object) -> Judged:
    reward = RewardConfig.model_validate({"function": f"odd_rewards:{name}", **limits})
    return make_judge(reward)(PROMPTS, COMPLETIONS)


def refusals(found: Judged) -> dict[int, str]:
    """Reasons by number of the completion; all others have the rewards that they are owed."""
    refused = {i: v for i, v in enumerate(found.values) if isinstance(v, Refusal)}
    assert all(v == len(COMPLETIONS[i]) for i, v in enumerate(found.values) if i not in refused)
    return {index: refusal.reason for index, refusal in refused.items()}


def living(group: int) -> list[int]:
    """Processes of a group; those that wait for their parent to take note of their end are none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().rpartition(") ")
            state, _, its_group = rest.split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(name.partition(" ")[0]))
    return found


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(SOURCE.split("\n"), 1) if text in line)


@pytest.mark.parametrize(
    ("name", "how", "line"),
    [
        ("ends", "ended its process with status 3", None),
        ("crashes", "ended its process with signal SIGSEGV", "ctypes.string_at(0) if"),
    ],
)
def test_completions_that_end_the_process_are_refused_alone(folder, name, how, line) -> None:
    found = refusals(judged(name))
    assert found.keys() == {3, 12}
    where = f" at {folder}/odd_rewards.py:{line_of(line)}, in <listcomp>" if line else ""
    wanted = f"the reward function {how}{where}"
    assert {reason.replace(f"in {name}", "in <listcomp>") for reason in found.values()} == {wanted}


def test_a_completion_that_hangs_is_refused_with_the_line_where_it_does(folder) -> None:
    begun = time.monotonic()
    found = refusals(judged("hangs", timeout_seconds=2, max_attempts=1))
    assert found.keys() == {3, 12}
    where = f"{folder}/odd_rewards.py:{line_of('while any')}, in hangs"
    line = line_of("time.sleep(0.01)")
    either = {where, where.replace(f":{line_of('while any')}", f":{line}")}
    for reason in found.values():
        how, _, place = reason.partition(" at ")
        assert how == "the reward function did not answer in 2 s"
        assert any(place.startswith(one[:-10]) for one in either), reason
    assert time.monotonic() - begun < 60


def test_a_half_in_which_all_raise_is_no_error(monkeypatch) -> None:
    completions = [*COMPLETIONS[:19], "worse"]
    judge = make_judge(RewardConfig(function="odd_rewards:raises_or_crashes"))
    values = judge(PROMPTS, completions).values
    reasons = {i: v.reason for i, v in enumerate(values) if isinstance(v, Refusal)}
    assert reasons.keys() == {3, 12, 19}
    assert "raised KeyError: 'worse'" in reasons[19]
    assert "SIGSEGV" in reasons[3]


def test_sys_exit_refuses_the_completion_that_asks_for_it() -> None:
    found = refusals(judged("exits"))
    assert found.keys() == {3, 12}
    assert "raised SystemExit: no licence" in found[3]


def test_a_process_that_ends_once_is_asked_again(caplog) -> None:
    with caplog.at_level(logging.WARNING, "raydpo"):
        assert refusals(judged("once")) == {}
    [line] = [record.message for record in caplog.records]
    assert "'odd_rewards:once' ended its process with signal SIGKILL" in line
    assert line.endswith("completions 1 to 20 of 20, attempt 1 of 2")


def test_a_function_that_ends_its_process_for_every_completion_is_an_error(folder) -> None:
    before = SOURCE.replace('if "bad" in c else len(c)', "")
    (folder / "odd_rewards.py").write_text(before)
    with pytest.raises(DataError, match="each of 4 completions that it was given alone") as caught:
        judged("crashes")
    assert f"odd_rewards.py:{line_of('ctypes.string_at')}" in caught.value.value


def test_memory_that_is_never_given_back_restarts_the_process_between_calls(caplog) -> None:
    reward = RewardConfig(function="odd_rewards:leaks", max_memory_gib=0.25)
    judge = make_judge(reward)
    with caplog.at_level(logging.WARNING, "raydpo"):
        held = [judge(PROMPTS, COMPLETIONS).values[0] for _ in range(8)]
    assert max(held) < 5
    assert held.count(1) >= 2
    # It is noticed between two calls, or during one that takes long enough.
    assert "is started again: it holds 0." in caplog.text or "of memory, more than" in caplog.text


def test_a_completion_that_takes_all_memory_is_refused() -> None:
    found = refusals(judged("takes_all", max_memory_gib=0.4, max_attempts=1))
    assert found.keys() == {3, 12}
    assert "of memory, more than max_memory_gib (0.4) at " in found[3]


def test_the_log_names_the_candidate_and_says_nothing_of_its_text(caplog, make_candidate) -> None:
    candidates = [make_candidate(f"p{i}", 0) for i in range(4)]
    candidates[2]["completion"] = "a bad secret"
    judge = make_judge(RewardConfig(function="odd_rewards:ends"))
    with caplog.at_level(logging.WARNING, "raydpo"):
        result = score_part({"odd": judge}, candidates)
    [refused] = result.quarantined
    assert refused["id"] == "p2/0"
    assert refused["reason"] == "odd: the reward function ended its process with status 3"
    assert f"candidate p2/0 is refused: {refused['reason']}" in caplog.text
    assert "secret" not in caplog.text
    assert result.counts["scored"] == 3


def test_a_wait_is_told_with_what_ends_it(caplog, monkeypatch) -> None:
    monkeypatch.setattr(own_process, "_SECONDS_BETWEEN_LINES", 0.3)
    monkeypatch.setattr(halving, "_MOST_ENDS", 1)
    with (
        caplog.at_level(logging.WARNING, "raydpo"),
        pytest.raises(DataError, match="did not answer in 5 s"),
    ):
        make_judge(RewardConfig(function="odd_rewards:hangs", timeout_seconds=5, max_attempts=1))(
            PROMPTS[:1], ["bad"]
        )
    told = "waits for reward function 'odd_rewards:hangs' on 1 completions since 0 s; it is ended after 5 s"
    assert told in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os; os._exit(4)", "ended its process with status 4"),
        ("import time; time.sleep(60)", r"did not answer in 3 s at .*slow_rewards.py:1, in <module>"),
        ("import ctypes; ctypes.string_at(0)", r"ended its process with signal SIGSEGV at .*slow_rewards.py:1, in <module>"),
    ],
)  # fmt: skip
def test_a_module_that_ends_or_hangs_in_its_import_ends_no_command(folder, text, said) -> None:
    (folder / "slow_rewards.py").write_text(text)
    with pytest.raises(ConfigError, match=f"importing its module {said}") as caught:
        look_at("slow_rewards:length", import_seconds=3)
    assert "slow_rewards" not in sys.modules
    assert len(str(caught.value).splitlines()) == 3


def test_a_changed_module_is_looked_at_again(folder) -> None:
    assert look_at("odd_rewards:length", 60).call == "(prompts=..., completions=...)"
    (folder / "odd_rewards.py").write_text("def length(completions): return []\n")
    assert look_at("odd_rewards:length", 60).call == "(completions=...)"


def test_one_process_answers_all_calls_and_ends_with_its_judge() -> None:
    process = RewardProcess("odd_rewards:length", 60)
    large = ["x" * 5000] * 2000
    for _ in range(2):
        answer = process.judge(large, large, 60)
        assert isinstance(answer, Judged)
        assert answer.values == [5000.0] * 2000
    assert process._running is not None
    pid = process._running.process.pid
    os.kill(pid, 0)
    del process
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_processes_that_the_function_started_end_with_it() -> None:
    process = RewardProcess("odd_rewards:starts_others", 60)
    process.look()
    assert process._running is not None
    group = process._running.process.pid
    assert isinstance(process.judge(["p"], ["c"], 60), Ended)
    given_up = time.monotonic() + 60  # what was killed is there until its parent has seen it
    while living(group) and time.monotonic() < given_up:
        time.sleep(0.1)
    assert living(group) == []


def test_limits_are_for_functions_only() -> None:
    with pytest.raises(ValidationError, match="`timeout_seconds` is for a `function`"):
        RewardConfig.model_validate({"classifier": "x", "timeout_seconds": 3})
    assert RewardConfig(classifier="x").timeout_seconds == 600
