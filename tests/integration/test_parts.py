"""Stages in parts on a real Ray cluster: errors of workers arrive as they were raised."""

from __future__ import annotations

from pathlib import Path

import pytest
from sampling_tables import make_prompts

from raydpo.errors import ModelError
from raydpo.parts import Transform, Workers, run_parts
from raydpo.run import PartResult, Stage
from raydpo.storage import folder_of
from raydpo.tables import Row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("where", ["constructor", "transform"])
def test_an_error_in_a_worker_arrives_as_it_was_raised(
    ray_cluster: None, tmp_path: Path, where: str
) -> None:
    def make_transform() -> Transform:
        if where == "constructor":
            raise ModelError("constructor", "rule", "way out")

        def transform(rows: list[Row]) -> PartResult:
            raise ModelError("transform", "rule", "way out")

        return transform

    prompts = make_prompts(tmp_path / "p", [("a", [1]), ("b", [2])], rows_per_part=1)
    stage = Stage(folder_of(str(tmp_path / "c")), "prompts", "prompts", {}, {})
    with pytest.raises(ModelError) as caught:
        run_parts(stage, [prompts], make_transform, Workers(1), "test", 0.0)
    assert caught.value.value == where
