"""What a person sees of an exception that raydpo did not raise, and what goes to a file."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from raydpo import cli
from raydpo.core import failures
from raydpo.core.errors import (
    ClusterError,
    ConfigError,
    DataError,
    ModelError,
    RaydpoError,
    RunError,
    UnexpectedError,
    note_place,
    own_errors,
    places_of,
)
from raydpo.core.failures import explained, has_more_to_tell, keep_traceback
from raydpo.core.run import run_folder
from raydpo.core.storage import Folder
from tests.conftest import ROOT


def of_a_task(cause: Exception) -> Exception:
    """The exception that Ray raises in the driver for one that a task raised."""
    with pytest.raises(type(cause)) as caught:
        raise cause
    trace = "".join(traceback.format_exception(caught.value))
    text = f"\x1b[36mray::f()\x1b[39m (pid=1)\n{trace}"
    return cast(Any, RayTaskError("f", text, caught.value)).as_instanceof_cause()


def test_an_error_of_raydpo_arrives_without_rays_class_around_it() -> None:
    wrapped = of_a_task(ConfigError("value", "rule", "way out"))
    assert len(str(wrapped).splitlines()) > 3
    with pytest.raises(ConfigError) as caught, own_errors():
        raise wrapped
    assert type(caught.value) is ConfigError
    assert str(caught.value) == "value\n  rule: rule\n  way out: way out"
    assert str(explained(wrapped)) == str(caught.value)
    assert has_more_to_tell(wrapped, explained(wrapped))


def test_an_error_that_was_raised_here_stays_itself() -> None:
    error = DataError("value", "rule", "way out")
    with pytest.raises(DataError) as caught, own_errors():
        raise error
    assert caught.value is error
    assert error.__cause__ is None
    assert not has_more_to_tell(error, explained(error))


def test_a_fault_in_a_task_is_told_with_its_lines_and_cause() -> None:
    told = explained(of_a_task(KeyError("answer")))
    assert type(told) is ClusterError
    first, line = told.value.splitlines()
    assert first == "a process on the cluster failed: KeyError: 'answer'"
    assert line.strip().startswith(f"{__file__}:")
    assert line.endswith("in of_a_task: raise cause")


def of_a_train_worker(cause: Exception) -> Exception:
    """What Ray Train raises for an exception of its worker, as it comes from its controller."""
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    with pytest.raises(type(cause)) as caught:
        raise cause
    trace = "".join(traceback.format_exception(caught.value))
    inner = UserExceptionWithTraceback(caught.value, trace)
    group = WorkerGroupError("1 of 2 workers failed", {1: inner})
    return ControllerError(cloudpickle.loads(cloudpickle.dumps(group)))


def of_a_map(cause: Exception) -> Exception:
    """What Ray raises for an exception of a function that Ray Data calls: it adds a note."""
    from ray.data._internal.util import _annotate_exception_with_retry_context

    text = str(cause)
    _annotate_exception_with_retry_context(
        cause,
        description="apply UDF transform",
        attempts=1,
        max_attempts=1,
        total_backoff_s=0.0,
        exception_str=text,
    )
    return cloudpickle.loads(cloudpickle.dumps(of_a_task(cause)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_file_is_named_though_ray_data_writes_in_its_place(number, tmp_path) -> None:
    file = str(tmp_path / "part.parquet")
    told = explained(of_a_map(OSError(number, os.strerror(number), file)))
    first = told.value.splitlines()[0]
    assert f": {file} (" in first
    assert "Failed to" not in str(told)
    assert "retry" not in str(told)


def test_what_ray_data_adds_to_other_errors_is_left_out() -> None:
    told = explained(of_a_map(ValueError("seven is no color")))
    assert told.value.splitlines()[0].endswith("ValueError: seven is no color")


@pytest.mark.parametrize("wrap", [of_a_task, of_a_train_worker])
def test_an_error_of_raydpo_is_found_at_any_depth_with_its_place(wrap) -> None:
    inner = DataError("value", "rule", "way out")
    note_place(inner, "round 0, labeling, part-00003, on node-1")
    error = of_a_task(wrap(of_a_task(inner)))
    told = explained(error)
    assert type(told) is DataError
    assert str(told) == "value\n  rule: rule\n  way out: way out"
    assert places_of(error) == ["round 0, labeling, part-00003, on node-1"]


@pytest.mark.parametrize("wrap", [lambda error: error, of_a_task, of_a_train_worker])
@pytest.mark.parametrize(
    ("error", "kind", "said", "way_out"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), RunError,
         "there is no room left on a disk: /runs/x", "MiB are free there"),
        (OSError(errno.EFBIG, "File too large"), RunError, "no room left on a disk", "TMPDIR"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), RunError, "may not be", "owner or mode"),
        (OSError(errno.EMFILE, "Too many open files"), RunError, "too many files", "ulimit -n"),
        (MemoryError(), ClusterError, "memory ran out", "batch sizes"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_has_its_name_wherever_it_happens(
    wrap, error, kind, said, way_out
) -> None:
    told = explained(wrap(error))
    assert type(told) is kind
    assert said in told.value
    assert way_out in told.way_out


def test_an_error_of_an_actors_constructor_is_told_from_its_text() -> None:
    text = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::A.__init__()"
        '\x1b[39m (pid=1)\n  File "/x/y.py", line 3, in __init__\n    raise error\n'
        "raydpo.core.errors.ModelError: the value\n    of two lines\n  rule: the rule\n  way out: the way"
    )
    told = explained(died(text))
    assert type(told) is ModelError
    assert told.args == ("the value\n    of two lines", "the rule", "the way")


def died(text: str) -> ActorDiedError:
    """What Ray raises where an actor never began; only the text of the cause is left."""
    error = ActorDiedError()
    error.error_msg = text
    error.args = (text,)
    assert text in str(error)
    return error


def test_a_fault_in_a_train_worker_is_told_with_its_lines() -> None:
    told = explained(of_a_train_worker(KeyError("answer")))
    first, line = told.value.splitlines()
    assert first == "a process on the cluster failed: KeyError: 'answer'"
    assert line.strip().startswith(f"{__file__}:")


def test_what_ray_train_lost_is_told_by_what_it_lost() -> None:
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    told = explained(ControllerError(WorkerGroupError("worker died", {0: lost})))
    assert "ActorDiedError: The actor died" in told.value
    assert "Ray's logs say why" in told.way_out


def test_a_tracker_that_finds_the_disk_full_is_not_called_uninstalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydpo.training import metrics_log

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_log, "_TensorBoard", full)
    with pytest.raises(OSError, match="No space left") as caught:
        metrics_log._tracker("tensorboard", Folder(str(tmp_path)), "test", 0)
    assert type(explained(caught.value)) is RunError


def test_where_no_disk_takes_the_traceback_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failures.tempfile, "mkdtemp", full)
    kept = keep_traceback(ValueError("the reason"), None)
    assert "No space left on device" in kept
    assert kept.endswith("ValueError: the reason\n")


#: What a process may write to a file, as where a disk is full.
FULL = """
import resource, signal, sys
from raydpo.cli import _print_failure
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Folder(sys.argv[1])
settings = {"note": "x" * 3000}  # in the manifest
stage = Stage(Place(folder, "test"), "examples", "examples", {}, settings)
open_stage(stage)
row = {"example_id": "a", "token_ids": list(range(int(sys.argv[2]))), "prompt_tokens": 0}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    write_part(stage, 0, PartResult([row], counts={"input": 1}))
    commit(stage, {})
except Exception as error:
    _print_failure(error, None)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tokens", "limit", "file"), [(200_000, 4096, "part-00000.parquet"), (1, 1800, "manifest.json")]
)
def test_a_full_disk_is_told_with_the_file_and_leaves_no_half(
    tmp_path: Path, tokens: int, limit: int, file: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "run"), str(tokens), str(limit)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stderr.startswith("RunError: there is no room left on a disk: "), done.stderr
    assert file in done.stderr
    assert "free some under" in done.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run/manifest.json").exists()


@pytest.mark.parametrize(
    ("error", "said", "way_out"),
    [
        (ActorDiedError(), "ActorDiedError: The actor died", "Ray's logs say why"),
        (WorkerCrashedError(), "WorkerCrashedError", "crash in native code"),
        (OutOfMemoryError("node 1 ran out of memory"), "ran out of memory", "more memory"),
    ],
)
def test_what_ray_lost_is_told_in_three_lines_with_a_way_out(error, said, way_out) -> None:
    told = explained(error)
    assert type(told) is ClusterError
    assert said in told.value
    assert way_out in told.way_out
    assert len(str(told).splitlines()) == 3


def test_what_nobody_foresaw_is_told_by_its_lines() -> None:
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    told = explained(caught.value)
    assert has_more_to_tell(caught.value, told)
    where = Path(keep_traceback(caught.value, None))
    assert type(told) is UnexpectedError
    assert told.value.startswith("JSONDecodeError: Expecting property name")
    assert f"{__file__}:" in told.value
    assert "Traceback (most recent call last)" in where.read_text()


def test_a_traceback_lies_in_the_run_directory_or_elsewhere_if_it_cannot(tmp_path: Path) -> None:
    error = ValueError("x")
    inside = keep_traceback(error, Folder(str(tmp_path / "run")))
    assert inside.startswith(f"{tmp_path}/run/errors/traceback-")
    assert "ValueError: x" in Path(inside).read_text()
    (tmp_path / "file").write_text("")
    elsewhere = keep_traceback(error, Folder(str(tmp_path / "file")))
    assert "ValueError: x" in Path(elsewhere).read_text()
    assert not elsewhere.startswith(str(tmp_path / "file"))


def test_a_command_ends_without_a_traceback_whatever_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("[")  # `annotate import` reads it
    assert cli.main(["annotate", "import", str(folder), str(tmp_path / "absent.jsonl")]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.splitlines()[0] == told.splitlines()[-1]
    assert f"run directory: {folder} (raydpo show {folder})" in told


@pytest.mark.parametrize("kind", RaydpoError.__subclasses__())
def test_every_error_pickles(kind: type[RaydpoError]) -> None:
    error = pickle.loads(pickle.dumps(kind("value", "rule", "way out")))
    assert (type(error), str(error)) == (kind, str(kind("value", "rule", "way out")))


@pytest.mark.parametrize(
    "output",
    [
        "/tmp/ray/session_2026/runtime_resources/working_dir_files/_ray_pkg_0123abcd/runs",
        "/var/ray/s/runtime_resources/working_dir_files/s3_bucket_job/runs",
    ],
)
def test_a_run_directory_in_a_jobs_temporary_folder_is_refused(output: str) -> None:
    with pytest.raises(ConfigError, match="own copy of the working directory") as caught:
        run_folder(output, "run")
    assert "--set output=/shared/runs" in caught.value.way_out


def test_a_relative_output_is_refused_in_a_job_and_taken_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "working_dir_files/_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(ConfigError, match="output 'runs'"):
        run_folder("runs", "run")
    assert run_folder(str(tmp_path / "runs"), "run").uri == f"{tmp_path}/runs/run"
    assert run_folder("s3://bucket/runs", "run").uri == "s3://bucket/runs/run"
    monkeypatch.chdir(tmp_path)
    assert run_folder("runs", "run").uri == f"{tmp_path}/runs/run"


def test_a_job_with_a_relative_output_ends_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "working_dir_files/_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    (package / "data.jsonl").write_text('{"text": "hello"}\n')
    job = {"name": "run", "model": "absent", "sft": {"data": "data.jsonl"}}
    (package / "job.yaml").write_text(yaml.safe_dump(job))
    assert cli.main(["sft", "job.yaml"]) == 1
    assert "own copy of the working directory" in capsys.readouterr().err
    assert not (package / "runs").exists()


def test_rays_own_exceptions_are_known_by_their_names() -> None:
    import ray.exceptions
    from ray.train.v2._internal import exceptions as of_train

    known = {*vars(ray.exceptions), *vars(of_train)}
    assert failures._WAYS_OUT.keys() <= known
