"""Real preference data through `check`, the preferences stage and the reference, no row lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raydpo.check.job import check
from raydpo.config.file import config_from_values
from raydpo.config.job import Config
from raydpo.core.run import read_manifest, read_quarantine, read_rows
from raydpo.pipeline.job import run_round

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _config(model: Path, data: Path, tmp_path: Path) -> Config:
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    return config_from_values(
        {
            "name": "real",
            "output": str(tmp_path / "runs"),
            "model": {
                "path": str(model),
                "pad_token": "<unk>",
                "chat_template": str(tmp_path / "chat.jinja"),
            },
            "preferences": {
                "path": str(data),
                "max_prompt_tokens": 96,
                "max_completion_tokens": 48,
                "too_long_prompt": "keep_end",
                "too_long_completion": "keep_start",
            },
            "reference": {"max_tokens_per_batch": 16384},
            "max_quarantined_fraction": 0.2,
        },
        "test",
    )


@pytest.mark.parametrize(
    ("file", "rows", "reasons"),
    [
        (
            "hh_rlhf/helpful-base.test.jsonl.gz",
            2354,
            {
                "the prompts of chosen and rejected differ": 9,
                "empty completion": 4,
                "chosen equals rejected": 2,
            },
        ),
        (
            "llamafactory/dpo_en_demo.json",
            300,
            # Instructions that are longer than the limit by themselves.
            {
                "the prompt is longer than 96 tokens even without the words of its last message": 42,
            },
        ),
    ],
)
def test_every_row_is_scored_by_the_reference_or_refused_with_its_reason(
    ray_cluster: None,
    stories260k: Path,
    shared_data: Path,
    tmp_path: Path,
    file: str,
    rows: int,
    reasons: dict[str, int],
) -> None:
    config = _config(stories260k, shared_data / file, tmp_path)
    assert check(config).problems == ()
    folder = run_round(config, until="reference").folder
    groups = _rows(folder, "preferences")
    scored = _rows(folder, "reference")
    refused = _refused(folder)
    cut_to_equal = refused.pop("chosen equals rejected, as tokens", 0)
    assert refused == reasons
    assert len(groups) + cut_to_equal + sum(reasons.values()) == rows
    assert [row["group_id"] for row in scored] == [row["group_id"] for row in groups]
    for group, score in zip(groups, scored, strict=True):
        lengths = [len(logps) for logps in score["reference_token_logps"]]
        assert lengths == [len(ids) for ids in group["completions"]]


def _rows(folder: Any, stage: str) -> list[dict[str, Any]]:
    manifest = read_manifest(folder.child(stage))
    assert manifest is not None
    assert manifest["counts"]["input"] == (
        manifest["counts"]["output"] + manifest["counts"]["quarantined"]
    )
    return list(read_rows(folder.child(stage), manifest))


def _refused(folder: Any) -> Counter[str]:
    manifest = read_manifest(folder.child("preferences"))
    assert manifest is not None
    return Counter(row["reason"] for row in read_quarantine(folder.child("preferences"), manifest))
