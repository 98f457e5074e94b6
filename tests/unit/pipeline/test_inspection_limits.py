"""Limits of `inspect` stop a run between its preferences and whatever is trained on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.config.file import load_config
from raydpo.config.job import Config
from raydpo.core.errors import DataError
from raydpo.core.parts import Table
from raydpo.core.run import look_at, read_manifest
from raydpo.core.storage import folder_of
from raydpo.core.walk import Making
from raydpo.pipeline.dry_run import Looking
from raydpo.pipeline.order import run_stages
from raydpo.pipeline.round import Round
from tests.unit.labeling.preference_texts import clean_groups, planted

ASSETS = Path(__file__).parents[3] / "assets"


def round_of(tmp_path: Path, inspect: dict[str, Any] | None, **sections: Any) -> Round:
    """A round of existing pairs, of which a third have a longer chosen completion than by chance."""
    path = tmp_path / "pairs.jsonl"
    if not path.exists():
        groups = planted(
            clean_groups(120), 0.5, lambda *both: (max(both, key=len), min(both, key=len))
        )
        rows = (
            {"prompt": g.prompt, "chosen": g.completions[0], "rejected": g.completions[1]}
            for g in groups
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "run",
        "output": str(tmp_path),
        "model": str(ASSETS / "review-lm"),
        "preferences": {"path": str(path), "max_prompt_tokens": 120, "max_completion_tokens": 120},
        "max_quarantined_fraction": 0.9,
        "training": {},
        **({} if inspect is None else {"inspect": inspect}),
        **sections,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    config: Config = load_config(str(tmp_path / "job.yaml"))
    return Round(config, folder_of(str(tmp_path / "run/round-000")), 0)


def stages(round_0: Round, until: str) -> list[str]:
    looking = Looking(set())
    run_stages(round_0, until, looking)
    return [found.stage for found in looking.found]


def test_without_the_section_nothing_is_inspected(tmp_path: Path) -> None:
    assert stages(round_of(tmp_path, None), "training") == ["preferences", "reference", "policy"]


def test_the_section_adds_a_page_before_the_reference_and_changes_no_key(tmp_path: Path) -> None:
    plain = round_of(tmp_path, None)
    run_stages(plain, "labeling", Making())
    before = (plain.folder.child("preferences")).read_bytes("manifest.json")
    round_0 = round_of(tmp_path, {})
    made = run_stages(round_0, "labeling", Making())
    assert made.preferences is not None
    assert made.preferences.folder.read_bytes("manifest.json") == before
    folder = round_0.folder.child("inspection")
    assert sorted(folder.files()) == ["inspection.html", "inspection.json", "manifest.json"]
    assert (
        folder.read_json("inspection.json")["pairs"] == made.preferences.manifest["counts"]["pairs"]
    )
    assert stages(round_0, "training") == ["preferences", "inspection", "reference", "policy"]
    described = round_0.inspect(made.preferences, None).describe()
    assert described is not None
    assert look_at(described)[0] == "done"


def test_a_limit_stops_the_run_after_the_page_and_a_higher_one_lets_it_go_on(
    tmp_path: Path,
) -> None:
    round_0 = round_of(tmp_path, {"max_longer_chosen": 0.55, "max_duplicates": 0.5})
    with pytest.raises(DataError) as caught:
        run_stages(round_0, "reference", Making())
    page = f"{round_0.folder.uri}/inspection/inspection.html"
    assert Path(page).exists()
    assert "longer_chosen is 0.69" in caught.value.value
    assert "duplicates" not in caught.value.value
    assert caught.value.rule == "inspect.max_longer_chosen is 0.55"
    assert page in caught.value.way_out
    assert read_manifest(round_0.folder.child("reference")) is None
    before = Path(page).stat().st_mtime_ns
    made = run_stages(round_of(tmp_path, {"max_longer_chosen": 0.95}), "labeling", Making())
    assert made.preferences is not None
    assert Path(page).stat().st_mtime_ns == before


def test_the_evaluations_prompts_are_read_once_and_compared(tmp_path: Path) -> None:
    prompts = tmp_path / "heldout.jsonl"
    rows = [{"prompt": clean_groups(120)[n].prompt} for n in (0, 1)]
    prompts.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "Why is it so?"}])
    )
    evaluation = {
        "prompts": {"path": str(prompts), "max_prompt_tokens": 120},
        "judge": {"function": "tests.integration.rewards:count_e"},
    }
    sections = {"evaluation": evaluation, "sampling": {"max_completion_tokens": 64}}
    round_0 = round_of(tmp_path, {"max_overlap": 0.0}, **sections)
    assert stages(round_0, "evaluation") == ["preferences", "evaluation-prompts", "inspection", "reference", "policy", "evaluation"]  # fmt: skip
    with pytest.raises(DataError, match=r"overlap is 0\.[36]"):
        run_stages(round_0, "labeling", Making())


def test_limits_that_this_data_cannot_answer_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "raydpo")
    run_stages(round_of(tmp_path, {"max_ties": 0.1}), "labeling", Making())
    assert "not measured in this data: inspect.max_ties" in caplog.text


class Ahead(Round):
    """A round that notes how far it would work ahead."""

    def work_ahead(self, prompts: Table, sampler: Round, to_reference: bool) -> None:
        AHEAD.append(to_reference)


class ActsFirst(Looking):
    """Looks, and does the first thing that belongs between two stages."""

    def between(self, act: Callable[[], object]) -> None:
        if not AHEAD:
            act()


AHEAD: list[bool] = []


@pytest.mark.parametrize("inspect", [None, {}])
def test_the_reference_waits_for_the_inspection(
    tmp_path: Path, inspect: dict[str, Any] | None
) -> None:
    AHEAD.clear()
    sampled = {
        "preferences": None,
        "prompts": {"path": str(ASSETS / "prompts.jsonl"), "limit": 3, "max_prompt_tokens": 32},
        "sampling": {"max_completion_tokens": 8},
        "labeling": {"reward": {"function": "tests.integration.rewards:count_e"}},
    }
    made = round_of(tmp_path, inspect, **sampled)
    run_stages(Ahead(made.config, made.folder, 0), "reference", ActsFirst(set()))
    assert [inspect is None] == AHEAD
