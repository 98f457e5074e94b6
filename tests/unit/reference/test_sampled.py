"""Log-probs of a model's samples are compared with its own scores, part by part."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import EnginesConfig, ModelConfig, ReferenceConfig
from raydpo.core.errors import EngineError
from raydpo.core.parts import PartStage, Table, _PartWorker
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, part_record, write_part
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row
from raydpo.models.loading import weights_fingerprint
from raydpo.reference.agreement import agreement_in, hold_samples, sampler_tolerance, witness_of
from raydpo.reference.stage import Scorer, reference_stage
from tests.group_rows import numbered_group

TOLERANCE = sampler_tolerance(ModelConfig(path="m"), EnginesConfig())
GROUPS: list[Row] = [
    {"group_id": "a", "prompt_id": "a", "completions": [[5, 2], [6, 7, 2]]},
    {"group_id": "b", "prompt_id": "b", "completions": [[5, 2], [8, 2]]},
]
SCORED: list[Row] = [
    {"group_id": "a", "reference_token_logps": [[-1.0, -0.5], [-2.0, -1.0, -0.5]]},
    {"group_id": "b", "reference_token_logps": [[-1.5, -0.25], [-3.0, -4.0]]},
]


def sample(prompt_id: str, ids: list[int], logps: list[float], policy: str = "own") -> Row:
    return {
        "prompt_id": prompt_id,
        "completion_ids": ids,
        "sampler_token_logps": logps,
        "policy": policy,
    }


SAMPLES = [
    sample("a", [6, 7, 2], [-2.0, -1.0001, -0.5]),
    sample("b", [5, 2], [-1.5, -0.25]),
    sample("b", [9, 2], [-9.0, -9.0]),  # labelling left it out
]


def hold(samples: list[Row], **changes: Any) -> PartResult:
    return hold_samples("own", "m", TOLERANCE, samples, GROUPS, PartResult(SCORED, **changes))


def test_completions_that_the_model_sampled_are_compared_token_by_token() -> None:
    held = hold(SAMPLES, counts={"kept": 1})
    assert held.rows == SCORED
    assert held.counts == {"kept": 1, "compared_tokens": 5}
    assert held.maxima["sampler_difference_nats"] == pytest.approx(1e-4)
    assert held.sums["sampler_difference_nats"] == pytest.approx(1e-4)


def test_another_models_samples_are_not_compared() -> None:
    held = hold([sample("b", [5, 2], [-9.0, -9.0], policy="another"), SAMPLES[0]])
    assert held.counts == {"compared_tokens": 3}


def test_a_sampler_that_computes_something_else_is_refused_with_the_number() -> None:
    with pytest.raises(
        EngineError, match=r"mean difference 0\.4 nats a token, largest 1,"
    ) as error:
        hold([*SAMPLES[:1], sample("b", [5, 2], [-2.5, 0.75])])
    assert "the model 'm'" in error.value.rule


def test_a_manifest_adds_up_what_its_parts_found(tmp_path: Any) -> None:
    stage = Stage(
        Place(folder_of(str(tmp_path / "reference")), "test"), "reference", "reference", {}, {}
    )
    open_stage(stage)
    write_part(stage, 0, hold(SAMPLES))
    write_part(stage, 1, hold([sample("b", [8, 2], [-3.0, -4.0004])]))
    write_part(stage, 2, hold([]))
    found = agreement_in(commit(stage, {}))
    assert found is not None
    assert found.tokens == 7
    assert found.total_nats == pytest.approx(5e-4)
    assert found.largest_nats == pytest.approx(4e-4)


def test_a_table_without_samples_says_nothing_of_them(tmp_path: Any) -> None:
    stage = Stage(
        Place(folder_of(str(tmp_path / "reference")), "test"), "reference", "reference", {}, {}
    )
    open_stage(stage)
    write_part(stage, 0, PartResult(SCORED))
    manifest = commit(stage, {})
    assert agreement_in(manifest) is None
    assert not {"sums", "maxima"} & manifest.keys()


def test_a_worker_holds_each_part_against_its_samples_before_it_writes_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = ModelConfig(path=str(tiny_model))
    groups = [numbered_group(number) for number in range(2)]
    scorer = Scorer(model, 4096)
    scored = scorer(groups).rows
    samples = _candidates(groups, scored, weights_fingerprint(model))
    moved = [{**row, "sampler_token_logps": [-0.3, -0.3]} for row in samples]
    source = _table(tmp_path / "groups", "preferences", [groups, groups])
    candidates = _table(tmp_path / "candidates", "candidates", [samples, moved])
    folder = folder_of(str(tmp_path / "reference"))
    stage = reference_stage(Place(folder, "test"), source, model, ReferenceConfig())
    witness = witness_of(candidates, model, TOLERANCE)
    assert open_stage(stage) is None
    stages = [PartStage(stage, [source], witness)]
    worker = _PartWorker(pickle.loads(pickle.dumps(stages)), lambda: scorer)

    worker({"stage": [0], "part": [0]})
    assert part_record(stage, 0)["counts"]["compared_tokens"] == 8
    with pytest.raises(EngineError, match="over 8 tokens"):
        worker({"stage": [0], "part": [1]})
    assert not (tmp_path / "reference/part-00001.parquet").exists()


def _candidates(groups: list[Row], scored: list[Row], policy: str) -> list[Row]:
    """The groups' completions as a sampler gives them, with the scorer's own log-probs."""
    return [
        {
            "prompt_id": group["prompt_id"],
            "candidate": number,
            "prompt": "p",
            "prompt_ids": group["prompt_ids"],
            "completion": "c",
            "completion_ids": ids,
            "sampler_token_logps": row["reference_token_logps"][number],
            "finish_reason": "stop",
            "seed": 0,
            "policy": policy,
        }
        for group, row in zip(groups, scored, strict=True)
        for number, ids in enumerate(group["completions"])
    ]


def _table(folder: Path, name: str, parts: list[list[Row]]) -> Table:
    stage = Stage(Place(folder_of(str(folder)), "test"), name, name, {}, {})
    open_stage(stage)
    for index, rows in enumerate(parts):
        write_part(stage, index, PartResult(rows))
    return Table(stage.folder, commit(stage, {}))
