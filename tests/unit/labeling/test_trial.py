"""The trial calls a reward function on two rows in a separate process, whatever it does there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import RewardConfig
from raydpo.core.errors import ConfigError, DataError
from raydpo.labeling import trial
from raydpo.labeling.trial import try_reward

pytestmark = pytest.mark.thorough

PROMPTS = ["the film", "a plot"]
SOURCE = """
import ctypes, os, sys, time
def prompts_then_completions(completions, prompts):
    print("printed"); print("printed", file=sys.stderr)
    return [len(p) + 1000 * c.startswith(" ") for p, c in zip(prompts, completions)]
def some(prompts, completions): return [None, 1.0]
def waits(prompts, completions): time.sleep(60)
def ends(prompts, completions): os._exit(3)
def crashes(prompts, completions): ctypes.string_at(0)
def exits(prompts, completions): sys.exit("no licence")
def faulty(prompts, completions, **columns): return columns["answer"]
def dictionaries(prompts, completions): return [{"score": 1.0} for _ in completions]
def one(prompts, completions): return [1.0]
def columns(completions, answer): return [len(text) for text in answer]
def messages(prompts, completions):
    return [len(p) + 10 * (c[0]["role"] == "assistant") for p, c in zip(prompts, completions)]
def made_up(completions, completion_ids, finish_reasons):
    return [len(ids) * finish_reasons.count("stop") for ids in completion_ids]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `tried_rewards.py`, from which nothing is imported here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "tried_rewards.py").write_text(SOURCE)
    return tmp_path


def tried(name: str, more: dict[str, list[Any]] | None = None, **options: Any) -> str:
    reward = RewardConfig(function=f"tried_rewards:{name}", **options)
    return try_reward(reward, PROMPTS, more or {})


@pytest.mark.usefixtures("folder")
def test_what_the_data_and_raydpo_know_of_a_row_reaches_the_function() -> None:
    assert tried("columns", {"answer": ["four", "a"]}) == "gave 4 and 1 on two rows"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the film"}]
    more = {"messages": [chat, None]}
    assert tried("messages", more, as_messages=True) == "gave 12 and 11 on two rows"
    assert tried("made_up").endswith("on two rows")


@pytest.mark.usefixtures("folder")
def test_what_a_function_gives_is_told() -> None:
    found = tried("prompts_then_completions")
    assert found == "gave 1008 and 1006 on two rows"
    assert "tried_rewards" not in sys.modules
    refused = "gave no reward (the reward is None, not a number) and 1 on two rows"
    assert tried("some") == refused


@pytest.mark.usefixtures("folder")
def test_a_function_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LIMIT_SECONDS", 1)
    assert tried("waits").startswith("did not answer in 1 s")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("ends", DataError, "ended its process with status 3"),
        ("crashes", DataError, "ended its process with signal SIGSEGV"),
        ("exits", DataError, "raised SystemExit: no licence"),
        ("faulty", DataError, "raised KeyError: 'answer'"),
        ("dictionaries", DataError, "the reward is a dict, not a number"),
        ("one", DataError, "returned 1 values (list) for 2 completions"),
        ("columns", DataError, "raised TypeError"),
        ("absent", ConfigError, "has no 'absent'"),
    ],
)
def test_what_a_run_would_end_with_is_raised(name: str, error: type, said: str) -> None:
    with pytest.raises(error) as caught:
        tried(name)
    assert said in caught.value.value
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.usefixtures("folder")
def test_nothing_of_it_stays_here() -> None:
    process = os.getpid()
    with pytest.raises(DataError):
        tried("ends")
    assert os.getpid() == process
