"""What a worker refuses before the first update."""

import math
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, TrainingConfig
from raydpo.core.errors import NumericsError
from raydpo.core.storage import Folder
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
