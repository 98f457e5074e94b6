"""A run and a dry run walk through one order, and agree on what each stage is made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raydpo.config.file import load_config
from raydpo.config.job import Config
from raydpo.core.parts import Table
from raydpo.core.run import PartResult, commit, commit_files, open_stage, write_part
from raydpo.core.stages import STAGES
from raydpo.core.storage import Folder, folder_of
from raydpo.core.walk import Making, Planned
from raydpo.pipeline.dry_run import Looking
from raydpo.pipeline.order import run_stages
from raydpo.pipeline.round import Round

ASSETS = Path(__file__).parents[3] / "assets"


class Finishing(Looking):
    """Finishes each stage without its work: an empty table under the stage's own identity."""

    def stage(self, planned: Planned) -> Table:
        super().stage(planned)
        stage = planned.describe()
        assert stage is not None
        assert open_stage(stage) is None
        if stage.table is None:
            return Table(stage.folder, commit_files(stage, "files"))
        write_part(stage, 0, PartResult([], counts={"input": 0, "pairs": 1}))
        return Table(stage.folder, commit(stage, {}))


@pytest.fixture
def round_0(tmp_path: Path) -> Round:
    """A round of prompts that a function of the user's judges."""
    values = {
        "name": "run",
        "output": str(tmp_path),
        "model": str(ASSETS / "review-lm"),
        "prompts": {"path": str(ASSETS / "prompts.jsonl"), "limit": 3, "max_prompt_tokens": 32},
        "sampling": {"candidates": 2, "max_completion_tokens": 8},
        "labeling": {"reward": {"function": "tests.integration.rewards:count_e"}},
        "training": {},
        "stream_stages": False,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    config: Config = load_config(str(tmp_path / "job.yaml"))
    return Round(config, folder_of(str(tmp_path / "run/round-000")), 0)


ALL = ["prompts", "candidates", "scores", "preferences", "reference", "policy"]


@pytest.mark.parametrize(
    ("until", "stages"),
    list(zip(STAGES[:-1], (ALL[:2], ALL[:4], ALL[:5], ALL), strict=True)),
)
def test_a_walk_ends_with_the_stage_of_the_command(
    round_0: Round, until: str, stages: list[str]
) -> None:
    looking = Looking(set())
    run_stages(round_0, until, looking)
    assert [found.stage for found in looking.found] == stages
    assert {found.action for found in looking.found} == {"done"}


def test_a_dry_run_keeps_what_was_made_of_the_stages_own_identities(round_0: Round) -> None:
    run_stages(round_0, "training", Finishing(set()))
    looking = Looking({"scores"})
    run_stages(round_0, "training", looking)
    actions = {found.stage: found.action for found in looking.found}
    assert actions == {
        "prompts": "kept",
        "candidates": "kept",
        "scores": "done again",
        "preferences": "looked at again",
        "reference": "looked at again",
        "policy": "looked at again",
    }


def manifests(folder: Folder) -> dict[str, bytes]:
    names = [name for name in folder.files(recursive=True) if name.endswith("manifest.json")]
    return {name: folder.read_bytes(name) for name in names}


def test_a_run_finds_nothing_to_do_where_a_dry_run_keeps_everything(
    round_0: Round, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no cluster here: a stage that was made again would fail."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    run_stages(round_0, "labeling", Finishing(set()))
    before = manifests(round_0.folder)
    caplog.set_level("INFO", "raydpo")
    sampled: list[bool] = []
    made = run_stages(round_0, "labeling", Making(), lambda: sampled.append(True))
    assert made.preferences is not None
    assert made.preferences.folder == round_0.folder.child("preferences")
    assert made.policy is None
    assert sampled == [True]
    assert manifests(round_0.folder) == before
    said = [record.getMessage() for record in caplog.records]
    found = [line.partition("]")[0] for line in said if "nothing to do" in line]
    labels = ("prompts", "sampling", "labeling, scores", "labeling")
    assert found == [f"[round 0, {label}" for label in labels]
