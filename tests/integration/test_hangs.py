"""raydpo reports a stopped process, ends it, and repeats its work."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from sampling_tables import make_prompts, rows_of

from raydpo.cli import main
from raydpo.core import waiting
from raydpo.core.parts import PartJob, PartStage, Transform, Workers, part_work, run_work
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row
from raydpo.core.tasks import run_task
from tests.integration.drive import descendants
from tests.integration.runs import write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(autouse=True)
def spoken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Waits are spoken of after a second, and the log is caught."""
    monkeypatch.setattr(logging.getLogger("raydpo"), "propagate", True)
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 1.0)
    monkeypatch.setattr(waiting, "EVERY_SECONDS", 1.0)
    caplog.set_level(logging.INFO, "raydpo")


def stops_once(mark: Path) -> Transform:
    """Stops its process at the second part, the first time; made here, so that workers need no test."""

    def transform(rows: list[Row]) -> PartResult:
        if rows[0]["prompt_id"] == "2" and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return PartResult(rows)

    return transform


def test_a_part_whose_process_is_stopped_is_made_by_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = make_prompts(tmp_path / "p", [(n, [1, n]) for n in range(6)], rows_per_part=2)
    mark = tmp_path / "stopped"
    transform = stops_once(mark)
    place = Place(folder_of(str(tmp_path / "o")), "test, copy")
    stage = Stage(place, "copy", "prompts", {"p": prompts.fingerprint}, {})
    workers = Workers(1, answer_within_seconds=8.0, answer_setting="a.setting")
    job = PartJob(lambda: transform, workers, identity=str(mark))
    [table] = run_work(part_work([PartStage(stage, [prompts])], job))
    assert rows_of(table) == rows_of(prompts)
    process = mark.read_text()
    assert not Path(f"/proc/{process}").exists()
    wait = rf"\[test, copy\] waits since \d+ s for the next part; at work: part-00001: process {process}"
    assert re.search(wait, caplog.text)
    ended = rf"process {process} .* has not answered for 8 s \(a\.setting\): it is ended"
    assert re.search(ended, caplog.text)


def test_a_task_whose_process_is_stopped_is_begun_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = tmp_path / "stopped"
    stops = stops_once(mark)

    def second_part() -> int:
        return len(stops([{"prompt_id": "2"}]).rows)

    limit = Workers(1, answer_within_seconds=4.0, answer_setting="a.setting")
    folder = folder_of(str(tmp_path / "o"))
    made = run_task(second_part, worker=limit, folder=folder, what="test", makes="a sum")
    assert made == 1
    process = mark.read_text()
    assert not Path(f"/proc/{process}").exists()
    ended = rf"process {process} .* \(a sum\) has not answered for 4 s \(a\.setting\): it is ended"
    assert re.search(ended, caplog.text)
    assert not folder.files(recursive=True)


def job_of(folder: Path, model: Path) -> Path:
    values: dict[str, Any] = {
        "name": "whole",
        "output": str(folder),
        "model": str(model),
        "preferences": write_pairs(folder, 24),
        "training": {
            "objective": {"name": "simpo"},  # no reference: its workers' start is not waited for
            "num_workers": 2,
            "cpus_per_worker": 0.5,
            "global_batch_groups": 6,
            "epochs": 2,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 1,
            "answer_within_seconds": 8.0,
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder / "job.yaml"


def stop_a_rank(policy: Path, stopped: list[int], ended: threading.Event) -> None:
    """SIGSTOP one of the train workers once the second checkpoint is there."""
    while len(list(policy.glob("checkpoints/checkpoint_*/checkpoint.json"))) < 2:
        if ended.wait(0.005):
            return
    worker = descendants("RayTrainWorker")[-1]
    os.kill(worker.pid, signal.SIGSTOP)
    stopped.append(worker.pid)


def test_a_stopped_train_rank_is_ended_and_training_resumes_bitwise_equal(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tmp_path, tiny_model)
    assert main(["training", str(job)]) == 0
    policy, stopped, ended = tmp_path / "run/round-000/policy", [], threading.Event()
    thread = threading.Thread(target=stop_a_rank, args=(policy, stopped, ended))
    thread.start()
    try:
        assert main(["training", str(job), "--set", "name=run"]) == 0
    finally:
        ended.set()
        thread.join()
    assert len(stopped) == 1
    log = capsys.readouterr().err
    said = rf"rank-0000\d: process {stopped[0]} .* has not answered for 8 s"
    assert re.search(said + r" \(training\.answer_within_seconds\): it is ended", log)
    assert re.search(r"waits since \d+ s for the slowest train worker; rank-00000: ", log)
    ours, whole = (
        load_file(tmp_path / name / "round-000/policy/model/model.safetensors")
        for name in ("run", "whole")
    )
    assert ours.keys() == whole.keys()
    assert all(ours[name].equal(whole[name]) for name in ours)
