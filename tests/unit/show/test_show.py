"""`raydpo show` lists what exists, and names what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.core.checked import write_checked
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, commit_files, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.show.listing import show_run

ROW = {"example_id": "a", "token_ids": [1], "prompt_tokens": 0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three finished stages."""
    for name in ("one", "three", "two"):
        stage = Stage(
            Place(Folder(str(tmp_path / "round-000" / name)), "test"),
            "examples",
            "examples",
            {},
            {},
        )
        open_stage(stage)
        write_part(stage, 0, PartResult([ROW], counts={"input": 1}))
        commit(stage, {})
    return tmp_path


def shown(run: Path) -> dict[str, str]:
    """What is said of each stage."""
    text = "\n".join(show_run(str(run), 1))
    return {part.partition(": ")[0]: part for part in text.split("\nround-000/")[1:]}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("part-00000.parquet", b"PAR1", "part-00000.parquet"),
        ("part-00000.parquet", None, "part-00000.parquet"),
        ("manifest.json", b"[" * 100_000, "manifest.json is damaged"),
        ("manifest.json", b"\xff", "manifest.json is damaged"),
        ("manifest.json", b"null", "not a mapping"),
    ],
)
def test_a_damaged_stage_is_named_and_the_others_are_listed(
    run: Path, file: str, content: bytes | None, said: str
) -> None:
    path = run / "round-000/three" / file
    path.unlink() if content is None else path.write_bytes(content)
    found = shown(run)
    assert found.keys() == {"one", "three", "two"}
    assert "DAMAGED" in "\n".join(show_run(str(run), 1))
    assert said in found["three"]
    for name in ("one", "two"):
        assert "token_ids: [1]" in found[name]


@pytest.mark.parametrize("values", [{}, {"key": 1}, {"committed_at": None}])
def test_a_manifest_that_lacks_what_every_one_has_is_damaged(run: Path, values: dict) -> None:
    write_checked(Folder(str(run / "round-000/three")), "manifest.json", values)
    assert "DAMAGED" in shown(run)["three"]
    assert "token_ids" in shown(run)["two"]


def test_the_exported_step_of_a_measured_training_is_shown(run: Path) -> None:
    stage = Stage(Place(Folder(str(run / "round-000/policy")), "test"), "train", None, {}, {})
    open_stage(stage)
    facts = {"steps": 30, "exported_step": 20, "planned_steps": 60, "heldout": {"loss": 0.51234}}
    commit_files(stage, "f" * 16, facts)
    said = "exported step 20; 30 of 60 steps done, held-out loss 0.5123"
    assert said in shown(run)["policy"]
    assert "exported step" not in shown(run)["one"]
