"""A whole run whose rewards are a verifier with a ground-truth column, a program, and a penalty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.integration.runs import drive, manifest, rows

pytestmark = pytest.mark.slow

VERIFIERS = "raydpo.labeling.verifiers"


def test_a_verifier_and_a_penalty_label_a_run(tmp_path: Path, tiny_model: Path) -> None:
    lines = [{"prompt": f"{n} + 3 =", "solution": f"{n} + 3\n#### {n + 3}.0"} for n in range(11)]
    lines += [{"prompt": "1 + 1 =", "solution": None}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = {
        "name": "run",
        "output": str(tmp_path),
        "rows_per_part": 6,
        "model": str(tiny_model),
        "prompts": {"path": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {
            "function": "tests.integration.samplers:sums",
            "candidates": 3,
            "max_completion_tokens": 32,
        },
        "labeling": {
            "reward": [
                {
                    "function": f"{VERIFIERS}:number",
                    "columns": {"answer": "solution"},
                    "options": {"absolute_tolerance": 0.25},
                    "name": "number",
                },
                {
                    "function": "raydpo.labeling.penalties:missing_eos",
                    "weight": 0.5,
                    "name": "missing_eos",
                },
                {
                    "function": f"{VERIFIERS}:regex",
                    "options": {"pattern": "boxed"},
                    "name": "regex",
                },
            ],
            "pairs": {"builder": "all_pairs"},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run = tmp_path / "run"
    checked = drive("never", run, "check", str(tmp_path / "job.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = drive("never", run, "labeling", str(tmp_path / "job.yaml"))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    groups = {row["prompt"]: row for row in rows(run, "preferences")}
    assert len(groups) == 12
    for prompt, group in groups.items():
        expected = [1.0, 1.0, 0.5] if prompt.startswith("1 + 1") else [2.0, 1.0, 1.5]
        assert group["rewards"] == expected, prompt
    counts = manifest(run, "scores")["counts"]
    assert (counts["scored"], counts["does_not_apply_number"]) == (36, 3)
    scorers = manifest(run, "scores")["settings"]["scorers"]
    assert scorers[0]["options"] == {"absolute_tolerance": 0.25}
    assert scorers[0]["columns"] == {"answer": "solution"}

    scored = run / "round-000/scores/manifest.json"
    written = scored.stat().st_mtime_ns
    combine = "labeling.combine.normalize=z_score"
    done = drive("never", run, "labeling", str(tmp_path / "job.yaml"), "--set", combine)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert scored.stat().st_mtime_ns == written, "the rewards are not asked again"
    half = 2**0.5 / 2
    for row in rows(run, "preferences"):
        expected = [0.5 * half, 0.5 * half, -half]
        if not row["prompt"].startswith("1 + 1"):
            expected = [1.5 * half, -1.5 * half, 0.0]
        assert row["rewards"] == pytest.approx(expected, abs=1e-12)
    settings = manifest(run, "preferences")["settings"]
    assert settings["combine"]["normalize"] == "z_score"
    assert manifest(run, "preferences")["counts"]["z_scores_of_equal_values"] == 12
