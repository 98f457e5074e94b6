"""Checks of the reference's and of the sampler's log-probs, on a real Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config.job import EnginesConfig, ModelConfig, ReferenceConfig
from raydpo.core.errors import EngineError, NumericsError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row
from raydpo.models.loading import weights_fingerprint
from raydpo.reference.agreement import Agreement, agreement_in, sampler_tolerance
from raydpo.reference.stage import score_reference, verify_reference, verify_sampler
from tests.group_rows import numbered_group

pytestmark = pytest.mark.slow


def table(folder: Path, name: str, parts: list[list[Row]]) -> Table:
    stage = Stage(Place(folder_of(str(folder)), "test"), name, name, {}, {})
    open_stage(stage)
    for index, rows in enumerate(parts):
        write_part(stage, index, PartResult(rows))
    return Table(stage.folder, commit(stage, {}))


@pytest.mark.parametrize("filled", [0, 1])
def test_a_wrong_log_prob_is_found_whichever_parts_are_empty(
    ray_cluster: None, tiny_model: Path, tmp_path: Path, filled: int
) -> None:
    parts: list[list[Row]] = [[], []]
    parts[filled] = [numbered_group(number) for number in range(2)]
    groups = table(tmp_path / "groups", "preferences", parts)
    model, settings = ModelConfig(path=str(tiny_model)), ReferenceConfig(cpus_per_worker=0.5)
    place = Place(folder_of(str(tmp_path / "reference")), "test")
    reference = score_reference(place, groups, model, settings)

    def verify(stored: Table) -> float:
        return verify_reference(Place(stored.folder, "test"), groups, stored, model, settings)

    assert verify(reference) < 1e-5
    rows = reference.part(filled)
    rows[1]["reference_token_logps"][1][0] -= 0.01
    other = [rows if index == filled else [] for index in range(2)]
    with pytest.raises(NumericsError, match=r"differ by 0\.01 nats"):
        verify(table(tmp_path / "other", "reference", other))


def candidates_of(groups: list[Row], reference: list[Row], policy: str) -> list[Row]:
    """The groups' completions as a sampler gives them, with the reference's log-probs."""
    return [
        {
            "prompt_id": group["prompt_id"],
            "candidate": number,
            "prompt": group["prompt"],
            "prompt_ids": group["prompt_ids"],
            "completion": "c",
            "completion_ids": ids,
            "sampler_token_logps": scored["reference_token_logps"][number],
            "finish_reason": "stop",
            "seed": 0,
            "policy": policy,
        }
        for group, scored in zip(groups, reference, strict=True)
        for number, ids in enumerate(group["completions"])
    ]


def test_samples_that_another_model_made_are_refused_before_their_part_is_written(
    ray_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    parts = [
        [numbered_group(number) for number in range(3)],
        [numbered_group(number) for number in range(3, 6)],
    ]
    groups = table(tmp_path / "groups", "preferences", parts)
    model, settings = ModelConfig(path=str(tiny_model)), ReferenceConfig(cpus_per_worker=0.5)
    tolerance = sampler_tolerance(model, EnginesConfig())

    def score(name: str, samples: Table | None) -> Table:
        place = Place(folder_of(str(tmp_path / name)), "test")
        return score_reference(place, groups, model, settings, samples, tolerance)

    def verify(name: str, samples: Table) -> Agreement | None:
        place = Place(folder_of(str(tmp_path / name)), "test")
        return verify_sampler(place, samples, model, settings, tolerance)

    plain = score("plain", None)
    policy = weights_fingerprint(model)
    rows = [candidates_of(parts[i], plain.part(i), policy) for i in range(2)]
    same = table(tmp_path / "same", "candidates", rows)
    kept = score("kept", same)
    assert kept.fingerprint == plain.fingerprint
    found = agreement_in(kept.manifest)
    assert found is not None
    assert (found.tokens, found.largest_nats < 1e-5) == (24, True)
    agreed = verify("sampler", same)
    assert agreed is not None
    assert agreed.largest_nats < 1e-5

    moved = [[{**row, "sampler_token_logps": [-0.3, -0.3]} for row in part] for part in rows]
    other = table(tmp_path / "other", "candidates", [rows[0], moved[1]])
    with pytest.raises(
        EngineError, match=r"mean difference \S+ nats a token, largest \S+, over 12"
    ):
        score("refused", other)
    assert not (tmp_path / "refused/part-00001.parquet").exists()
    everywhere = table(tmp_path / "everywhere", "candidates", moved)
    with pytest.raises(EngineError, match="sampler and scorer give different log-probs"):
        verify("other-sampler", everywhere)
