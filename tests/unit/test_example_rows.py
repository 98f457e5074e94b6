"""The example rows of docs/data.md: raydpo reads each as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import raydpo
from tests.tutorial_pages import ROOT

pytestmark = pytest.mark.thorough

_ROW = r"^`(prompts|preferences|sft)`, ([^\n]*):\n\n```json\n(.*?)^```$"
ROWS = re.findall(
    _ROW, (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def job(section: str, about: str, folder: Path) -> dict[str, Any]:
    """A job that reads the row as its heading says, and nothing else."""
    options = re.findall(r"(?:layout|loss_on:)? ?`(?:loss_on: )?(\w+)`", about)
    limits = {"max_prompt_tokens": 64}
    source: dict[str, Any] = {
        "prompts": {"path": "rows.jsonl", **limits},
        "preferences": {"path": "rows.jsonl", "max_completion_tokens": 64, **limits},
        "sft": {"data": "rows.jsonl", "max_sequence_tokens": 128},
    }[section]
    if options:
        source["layout" if section == "preferences" else "loss_on"] = options[0]
    return {
        "name": "row",
        "output": str(folder / "runs"),
        "model": {"path": str(ROOT / "assets" / "review-lm"), "chat_template": "chat.jinja"},
        section: source,
        "sampling": {"max_completion_tokens": 64},
        "max_quarantined_fraction": 0,
    }


def test_every_layout_has_a_row() -> None:
    layouts = re.findall(r"layout `(\w+)`", " ".join(about for _, about, _ in ROWS))
    assert set(layouts) == {
        "explicit", "implicit", "transcript", "sharegpt", "ranked", "unpaired",
    }  # fmt: skip
    assert len(ROWS) == 11


@pytest.mark.parametrize(("section", "about", "row"), ROWS, ids=[f"{s}, {a}" for s, a, _ in ROWS])
def test_each_example_row_is_read(
    section: str, about: str, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    rows = row.splitlines() if row.count("}\n{") else [json.dumps(json.loads(row))]
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in rows))
    problems = raydpo.check_job(raydpo.load_job(job(section, about, tmp_path)))
    assert [str(problem) for problem in problems] == []
