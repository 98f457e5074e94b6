"""Callbacks in a user's own module: what raydpo calls them with, and what it does if one fails."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydpo import Event
from raydpo.check.findings import Findings
from raydpo.check.own_functions import check_own_functions
from raydpo.config.file import config_from_values
from raydpo.core import callbacks
from raydpo.core.callbacks import callbacks_of, has_callbacks, notify
from raydpo.core.errors import ConfigError, RunError
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder, folder_of

MODULE = """
import sys
import time

seen = []

def first(event):
    seen.append(("first", event))

def second(event, more=1):
    seen.append(("second", event))

def fails_at_steps(event):
    if event.kind == "step":
        raise OSError("the dashboard is down")

def fails_at_stages(event):
    if event.kind == "stage":
        raise OSError("the dashboard is down")

def exits(event):
    sys.exit("no more")

def empties(event):
    event.metrics["nested"].clear()
    event.metrics.clear()

def is_slow(event):
    time.sleep(0.3)

def asks_for_more(event, trainer):
    pass

def takes_nothing():
    pass

async def is_async(event):
    pass

def yields(event):
    yield event
"""
ROW = {"example_id": "a", "token_ids": [1], "prompt_tokens": 0}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A run directory; the module of callbacks is in the working directory."""
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder_of(str(tmp_path / "runs/run"))
    sys.modules.pop("my_callbacks", None)


def make_stage(run: Folder, name: str) -> None:
    stage = Stage(Place(run.child("round-000", name), "test"), "examples", "examples", {}, {})
    assert open_stage(stage) is None
    write_part(stage, 0, PartResult([ROW], counts={"input": 1}))
    commit(stage, {})


def seen() -> list[tuple[str, Event]]:
    return sys.modules["my_callbacks"].seen


def test_all_are_called_in_order_with_what_ended(run: Folder) -> None:
    with callbacks_of(run, ["my_callbacks:first", "my_callbacks:second"]):
        assert has_callbacks(run.child("round-000/policy"))
        notify("step", run.child("round-000/policy"), {"loss": 0.5}, 1)
        make_stage(run, "examples")
        notify("round", run.child("round-000"), {"reward": 1.0})
    step = Event("step", run.uri, "round-000/policy", 1, {"loss": 0.5})
    counts = {"input": 1, "output": 1, "quarantined": 0}
    stage = Event("stage", run.uri, "round-000/examples", None, counts)
    last = Event("round", run.uri, "round-000", None, {"reward": 1.0})
    names = ("first", "second")
    assert seen() == [(name, event) for event in (step, stage, last) for name in names]


def test_no_callback_is_called_for_another_run_or_after_its_own(run: Folder) -> None:
    with callbacks_of(run, ["my_callbacks:first"]):
        make_stage(folder_of(f"{run.uri}-of-another"), "examples")
    make_stage(run, "afterwards")
    assert seen() == []


def test_what_a_callback_does_to_the_metrics_reaches_nobody_else(run: Folder) -> None:
    metrics = {"nested": {"mean": 1.0}}
    with callbacks_of(run, ["my_callbacks:empties", "my_callbacks:first"]):
        notify("round", run.child("round-000"), metrics)
    assert metrics == seen()[0][1].metrics == {"nested": {"mean": 1.0}}


def make_examples_in_two_steps(run: Folder) -> None:
    for step in (1, 2):
        notify("step", run.child("round-000/examples"), {}, step)
    make_stage(run, "examples")


@pytest.mark.parametrize(
    ("name", "ended"),
    [
        ("fails_at_steps", "step 1 of round-000/examples"),
        ("fails_at_stages", "stage round-000/examples"),
    ],
)
def test_one_that_fails_stops_the_run_at_the_end_of_a_finished_stage(
    run: Folder, name: str, ended: str
) -> None:
    paths = ["my_callbacks:first", f"my_callbacks:{name}", "my_callbacks:second"]
    with pytest.raises(RunError) as raised, callbacks_of(run, paths):
        make_examples_in_two_steps(run)
    said = raised.value.value
    assert f"callback 'my_callbacks:{name}', at the end of {ended}, failed" in said
    assert "OSError: the dashboard is down" in said
    assert 'raise OSError("the dashboard is down")' in said  # the user's own line
    assert run.exists("round-000/examples/manifest.json")
    told = [(who, event.step) for who, event in seen()]
    if name == "fails_at_steps":
        assert told == [("first", 1)]
    else:
        assert told[-1] == ("first", None)


def test_one_that_fails_at_a_step_stops_a_run_in_which_no_stage_ends(run: Folder) -> None:
    with pytest.raises(RunError, match="step 3 of round-000/policy"):  # noqa: SIM117
        with callbacks_of(run, ["my_callbacks:fails_at_steps"]):
            notify("step", run.child("round-000/policy"), {}, 3)


def test_one_that_exits_is_named_like_any_other_that_fails(run: Folder) -> None:
    with pytest.raises(RunError, match="SystemExit: no more"):  # noqa: SIM117
        with callbacks_of(run, ["my_callbacks:exits"]):
            notify("step", run.child("round-000/policy"), {}, 1)


def test_the_log_names_a_callback_that_the_run_waits_for(
    run: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_WARNINGS", 0.1)
    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)
    with callbacks_of(run, ["my_callbacks:is_slow"]):
        notify("round", run.child("round-000"), {})
    assert "waits for callback 'my_callbacks:is_slow', at the end of round round-000" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "has no 'missing'"),
        ("seen", "is a list"),
        ("asks_for_more", "nothing is there for its parameter `trainer`"),
        ("takes_nothing", "takes no parameter `event`"),
        ("is_async", "is a coroutine function (`async def`)"),
        ("yields", "has a `yield`"),
    ],
)
def test_what_is_no_callback_is_refused_before_a_run(run: Folder, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match="callback") as raised:  # noqa: SIM117
        with callbacks_of(run, [f"my_callbacks:{name}"]):
            pass
    assert said in raised.value.value


def test_the_check_refuses_what_is_no_callback(run: Folder) -> None:
    path = "my_callbacks:takes_nothing"
    values = {"name": "run", "model": "m", "prompts": {"path": "p"}, "callbacks": [path]}
    findings = Findings()
    check_own_functions(config_from_values(values, "here"), findings)
    [problem] = findings.problems
    assert "callback 'my_callbacks:takes_nothing'() takes no parameter `event`" in problem.value
