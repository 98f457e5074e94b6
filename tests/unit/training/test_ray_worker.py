"""What a worker refuses before the first update."""

import math
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, SftConfig, TrainingConfig
from raydpo.core.errors import DataError, NumericsError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder, folder_of
from raydpo.training import ray_worker
from raydpo.training.checkpoint_files import file_entries, write_manifest
from raydpo.training.ray_worker import TrainJob, first_step_check


def job(tmp_path: Path, precision: str, **settings: Any) -> TrainJob:
    """A policy that starts at its reference."""
    nothing: Any = None
    return TrainJob(
        model=ModelConfig.model_validate({"path": "m", "precision": precision}),
        settings=TrainingConfig.model_validate({"learning_rate": 1e-5, **settings}),
        table=nothing,
        reference=None,
        reference_model=None,
        folder=Folder(str(tmp_path)),
        seed=0,
        heldout_fraction=0.0,
        starts_at_reference=True,
        what="round 0, training",
    )


@pytest.mark.parametrize(
    ("precision", "settings", "passes", "refused"),
    [
        ("float32", {}, 9e-4, 2e-3),
        ("bfloat16", {}, 0.2, 0.3),
        ("bfloat16", {"step_zero_tolerance": 0.01}, 9e-3, 0.02),
        ("float32", {"step_zero_tolerance": 0.01}, 9e-3, math.nan),
    ],
)
def test_step_zero_allows_what_its_precision_rounds(
    tmp_path: Path, precision: str, settings: dict[str, float], passes: float, refused: float
) -> None:
    check = first_step_check(job(tmp_path, precision, **settings))
    check(passes)
    with pytest.raises(NumericsError, match=r"training\.step_zero_tolerance"):
        check(refused)


def test_a_measured_training_divides_its_rows_into_two_sides(tmp_path: Path) -> None:
    ids = [uuid.uuid4().hex[:16] for _ in range(60)]  # files of groups are kept by their content
    names = [name for n in ids for name in (n, f"{n}-2", f"{n}:turn-0", f"{n}-2:1")]
    rows = [{"example_id": name, "token_ids": [5, 6, 7], "prompt_tokens": 1} for name in names]
    folder = folder_of(str(tmp_path / "examples"))
    stage = Stage(Place(folder, "examples"), "examples", "examples", {}, {})
    open_stage(stage)
    write_part(stage, 0, PartResult(rows))
    own = replace(
        job(tmp_path, "float32"),
        settings=SftConfig(data="x", heldout_fraction=0.3),
        table=Table(folder, commit(stage, {})),
        heldout_fraction=0.3,
    )
    trained, measured = ray_worker._dataset(own), ray_worker._heldout(own)
    assert measured is not None
    sides = [[data[n].group_id for n in range(len(data))] for data in (trained, measured)]
    assert sorted(sides[0] + sides[1]) == sorted(names)
    of_rows = [{name[:16] for name in side} for side in sides]
    assert len(of_rows[1]) in range(4, 40)
    assert not of_rows[0] & of_rows[1]
    unmeasured = replace(own, settings=SftConfig(data="x"), heldout_fraction=0.0)
    assert len(ray_worker._dataset(unmeasured)) == len(names)
    assert ray_worker._heldout(unmeasured) is None
    nothing = replace(own, heldout_fraction=1e-9)
    with pytest.raises(DataError, match="no rows to measure on"):
        ray_worker._heldout(nothing)


def test_the_best_step_s_checkpoint_is_found_by_its_manifest(tmp_path: Path) -> None:
    own = job(tmp_path, "float32")
    folders = {step: tmp_path / f"checkpoints/checkpoint_{step}" for step in (2, 4, 6)}
    for step, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_text(f"step {step}")
        write_manifest(folder, step, file_entries(folder.glob("*.distcp")))
    (tmp_path / "checkpoints/checkpoint_7").mkdir()  # it was never finished
    with ray_worker._checkpoint_of(own, 4) as found:
        assert (found / "__0_0.distcp").read_text() == "step 4"
    (folders[4] / "__0_0.distcp").write_text("changed")
    for step in (4, 5):
        with (
            pytest.raises(DataError, match=f"no whole checkpoint of step {step}"),
            ray_worker._checkpoint_of(own, step),
        ):
            pass
