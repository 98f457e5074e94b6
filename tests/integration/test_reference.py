"""The check of the reference's log-probs before training, on a real Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config import ModelConfig, ReferenceConfig
from raydpo.errors import NumericsError
from raydpo.labeling.groups import preference_row
from raydpo.parts import Table
from raydpo.reference.stage import score_reference, verify_reference
from raydpo.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.storage import folder_of
from raydpo.tables import Row

pytestmark = pytest.mark.slow


def table(folder: Path, name: str, parts: list[list[Row]]) -> Table:
    stage = Stage(folder_of(str(folder)), name, name, {}, {})
    open_stage(stage)
    for index, rows in enumerate(parts):
        write_part(stage, index, PartResult(rows))
    return Table(stage.folder, commit(stage, {}))


def group(number: int) -> Row:
    candidates = [
        {
            "prompt_id": str(number),
            "candidate": candidate,
            "prompt": "p",
            "prompt_ids": [1, 5 + number],
            "completion": "c",
            "completion_ids": [9 + candidate, 2],
            "score": None,
        }
        for candidate in range(2)
    ]
    return preference_row(candidates, [(0, 1)], [1.0])


@pytest.mark.parametrize("filled", [0, 1])
def test_a_wrong_log_prob_is_found_whichever_parts_are_empty(
    ray_cluster: None, tiny_model: Path, tmp_path: Path, filled: int
) -> None:
    parts: list[list[Row]] = [[], []]
    parts[filled] = [group(number) for number in range(2)]
    groups = table(tmp_path / "groups", "preferences", parts)
    model, settings = ModelConfig(path=str(tiny_model)), ReferenceConfig(cpus_per_worker=0.5)
    reference = score_reference(
        folder=folder_of(str(tmp_path / "reference")),
        groups=groups,
        model=model,
        settings=settings,
        what="test",
        max_quarantined_fraction=0.0,
    )

    def verify(stored: Table) -> float:
        return verify_reference(
            groups=groups, reference=stored, model=model, settings=settings, seed=0, what="test"
        )

    assert verify(reference) < 1e-5
    rows = reference.part(filled)
    rows[1]["reference_token_logps"][1][0] -= 0.01
    other = [rows if index == filled else [] for index in range(2)]
    with pytest.raises(NumericsError, match=r"differ by 0\.01 nats"):
        verify(table(tmp_path / "other", "reference", other))
