"""Slices of the held-out prompts: which prompts are in one, and what is measured there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import make_config, make_logps, make_samples

from raydpo.core.metadata import metadata_text
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import measure
from raydpo.evaluation.metrics import paired_difference
from raydpo.evaluation.report import slice_lines
from raydpo.evaluation.samples import Sample
from raydpo.evaluation.slices import OTHERS, measure_slices, prompt_columns, slicings


def several(score: float, seed: int, prompts: int = 40) -> list[Sample]:
    """Two completions of each of forty prompts; prompt pN has 1 + N // 10 tokens."""
    made: list[Sample] = []
    for block in range(prompts // 8):
        for s in make_samples(score, seed=seed + 10 * block):
            number = 8 * block + int(s.prompt_id[1:])
            made.append(replace(s, prompt_id=f"p{number}", prompt_tokens=1 + number // 10))
    return made


def sliced(
    policy: list[Sample], columns: dict[str, dict[str, str]] | None = None
) -> tuple[dict[str, Any], list[Sample]]:
    reference = several(0.4, seed=0)
    found = measure_slices(reference, policy, make_logps(policy, 0.1), columns or {}, False)
    return found, reference


def shifted(samples: list[Sample], shifts: dict[int, float]) -> list[Sample]:
    """Change the scores of prompts by their number of tokens."""
    return [replace(s, score=s.score + shifts.get(s.prompt_tokens or 0, 0.0)) for s in samples]


def test_prompts_of_equal_length_are_in_one_slice_and_all_are_in_one() -> None:
    by_length, _ = slicings(several(0.4, seed=0), {})
    assert by_length.by == "prompt length"
    assert by_length.order == ["1 to 2 tokens", "3 tokens", "4 tokens"]
    assert len(by_length.labels) == 40
    for number in range(40):
        tokens = 1 + number // 10
        label = by_length.labels[f"p{number}"]
        assert label == ("1 to 2 tokens" if tokens < 3 else f"{tokens} tokens")


def test_a_slice_has_the_numbers_of_its_prompts_alone() -> None:
    policy = several(0.7, seed=1)
    found, reference = sliced(policy)
    one = next(s for s in found["slices"] if s["slice"] == "3 tokens")
    kept = {f"p{n}" for n in range(20, 30)}
    sides = [[s for s in side if s.prompt_id in kept] for side in (policy, reference)]
    lists = [part for s in sides for part in ([x.score for x in s], [x.prompt_id for x in s])]
    expected = paired_difference(*lists)
    assert one["difference"]["mean"] == pytest.approx(expected.mean)
    assert one["difference"]["standard_error"] == pytest.approx(expected.standard_error)
    assert one["prompts"] == 10
    nats = [0.1 * len(s.completion_ids) for s in sides[0]]
    assert one["kl_nats_per_completion"]["mean"] == pytest.approx(sum(nats) / len(nats))
    assert found["looked_at"] == len(found["slices"]) == 6
    json.dumps(found, allow_nan=False)


def test_lengths_of_completions_are_the_references_whatever_the_policy_wrote() -> None:
    reference = several(0.4, seed=0)
    longer = [replace(s, completion_ids=s.completion_ids * 9) for s in several(0.7, seed=1)]
    found, _ = sliced(longer)
    _, by_completion = slicings(reference, {})
    named = [s["slice"] for s in found["slices"] if s["by"] == by_completion.by]
    assert named == list(by_completion.order)


def test_a_column_is_one_more_slicing_and_small_labels_are_joined() -> None:
    source = {f"p{n}": "web" if n < 20 else "books" if n < 36 else f"rare-{n}" for n in range(40)}
    found, _ = sliced(several(0.7, seed=1), {"source": source, "language": {"p0": "en"}})
    of_source = [s for s in found["slices"] if s["by"] == "source"]
    assert [(s["slice"], s["prompts"]) for s in of_source] == [
        ("web", 20), ("books", 16), (OTHERS, 4),
    ]  # fmt: skip
    assert not [s for s in found["slices"] if s["by"] == "language"]


def examined(policy: list[Sample]) -> dict[str, Any]:
    found, reference = sliced(policy)
    config = make_config()
    assert config.evaluation is not None
    logps = make_logps(policy, 0.1)
    values = measure(config, config.evaluation, reference, policy, logps, None)
    return examine({**values, "slices": found}, reference, policy, {})


def check(found: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in found["checks"] if c["name"] == "slices")


def test_a_slice_that_became_worse_is_flagged_although_the_mean_rose() -> None:
    found = examined(shifted(several(0.7, seed=1), {4: -0.6}))
    assert found["verdict"].startswith("Training helped, with reservations: ")
    assert check(found)["flagged"]
    assert "fell beyond chance in 1 of 6 slices: prompt length 4 tokens (−0.2" in found["verdict"]


def test_a_slice_that_fell_within_the_chance_of_so_many_is_not_flagged() -> None:
    policy = several(0.7, seed=1)
    found, _ = sliced(policy)
    # Two and a half standard errors: beyond chance for one slice, and not for six.
    one = next(s for s in found["slices"] if s["slice"] == "4 tokens")
    down = one["difference"]["mean"] + 2.5 * one["difference"]["standard_error"]
    again, _ = sliced(shifted(policy, {4: -down}))
    z = next(s for s in again["slices"] if s["slice"] == "4 tokens")["difference"]["z"]
    assert z == pytest.approx(-2.5)
    assert again["z_beyond_chance"] == pytest.approx(2.638, abs=0.001)
    assert not check(examined(shifted(policy, {4: -down})))["flagged"]


def test_one_kind_of_prompt_has_no_slices() -> None:
    some = [replace(s, completion_ids=(5, 6), prompt_tokens=3) for s in make_samples(0.4, seed=0)]
    found = measure_slices(some, some, make_logps(some, 0.0), {}, False)
    assert (found["looked_at"], found["z_beyond_chance"], found["slices"]) == (0, None, [])
    assert slice_lines({"slices": found}) == []


def test_columns_of_the_prompts_with_few_labels_and_messages_are_slices(tmp_path: Path) -> None:
    stage = Stage(Place(Folder(str(tmp_path)), "test"), "prompts", "prompts", {}, {})
    open_stage(stage)
    said = {"role": "user", "content": "hello"}
    rows = [
        {
            "prompt_id": f"p{n}",
            "prompt": "x",
            "messages": None if n == 2 else [said] * (1 + 2 * (n % 2)),
            "prompt_ids": [1],
            "metadata": metadata_text(
                {"source": "web", "level": n % 2, "answer": f"{n}", "score": n / 7, "tags": ["a"]}
                if n
                else {}
            ),
        }
        for n in range(20)
    ]
    write_part(stage, 0, PartResult(rows, counts={"input": 20}))
    columns = prompt_columns(Table(stage.folder, commit(stage, {})))
    # Twenty answers are no kinds of prompts; fractions and lists are no labels.
    assert columns.keys() == {"messages of the prompt", "source", "level"}
    messages = columns["messages of the prompt"]
    assert (messages["p0"], messages["p1"], messages.get("p2")) == ("1 message", "3 messages", None)
    assert columns["level"] == {f"p{n}": str(n % 2) for n in range(1, 20)}
