"""Malformed run folders: `show` and `--dry-run` read each damaged or mistyped JSON file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from raydpo.core.checked import write_checked
from raydpo.core.place import Place
from raydpo.core.run import round_folder, run_folder
from raydpo.core.storage import Folder
from raydpo.pipeline.dry_run import outlook_of_round
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.show.listing import show_run
from tests.conftest import make_tiny_model
from tests.fuzz.fuzzing import Fuzz, allowed

pytestmark = pytest.mark.thorough

ODD: list[Any] = [None, True, -1, 0, 1.5, "", "x", [], [1], {}, {"a": 1}, [{"name": "x"}]]
GARBAGE = [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b'{"checksum": 1}']


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job in a folder, with its preferences read."""
    folder = tmp_path_factory.mktemp("fuzz-run")
    make_tiny_model(folder / "model", seed=0)
    rows = [{"prompt": f"the film {i}", "chosen": " good", "rejected": " bad"} for i in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = job(folder)
    run = run_folder(config.output, config.name)
    run_preferences_stage(config, Place(round_folder(run, 0).child("preferences"), "test"))
    return folder


def job(folder: Path) -> Config:
    values = {
        "name": "run",
        "output": str(folder / "runs"),
        "model": str(folder / "model"),
        "preferences": {
            "path": str(folder / "pairs.jsonl"),
            "max_prompt_tokens": 32,
            "max_completion_tokens": 32,
        },
        "training": {},
    }
    return config_from_values(values, "a test")


def contents(values: dict[str, Any]) -> st.SearchStrategy[bytes | dict[str, Any]]:
    """Garbage and cut files as bytes; mappings get a checksum that matches."""
    whole_file = json.dumps(values).encode()
    changed = st.builds(
        lambda key, odd: {**values, key: odd}, st.sampled_from(list(values)), st.sampled_from(ODD)
    )
    without = st.sampled_from(list(values)).map(
        lambda key: {k: v for k, v in values.items() if k != key}
    )
    cut = st.integers(0, len(whole_file)).map(lambda end: whole_file[:end])
    return st.one_of(changed, without, cut, st.sampled_from(GARBAGE), st.binary(max_size=20))


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_fuzz_run_folders(fuzz: Fuzz, whole: Path, tmp_path: Path, name: str) -> None:
    stage = Path("runs/run/round-000/preferences")
    values = json.loads((whole / stage / "manifest.json").read_bytes())
    values.pop("checksum")
    copied = tmp_path / "copy"
    shutil.copytree(whole, copied)
    config = job(copied)

    def look(content: bytes | dict[str, Any]) -> None:
        for file in ("manifest.json", "plan.json"):
            (copied / stage / file).unlink(missing_ok=True)
        if isinstance(content, dict):
            write_checked(Folder(str(copied / stage)), name, content)
        else:
            (copied / stage / name).write_bytes(content)
        lines = list(show_run(str(copied / "runs/run"), 1))
        assert len(lines) >= 2
        allowed(outlook_of_round, config, "training")

    fuzz(look, contents(values), 60)
