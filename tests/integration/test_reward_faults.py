"""A fault in a user's reward, seen first on the cluster: the command ends with their own lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

#: It answers where `raydpo check` calls it, and fails where candidates are scored.
SOURCE = """
import os
ANSWERS = {}
def length(prompts, completions):
    if " A first completion." not in completions:
        return [look_up(c) for c in completions]
    return [len(c) for c in completions]
def look_up(completion):
    return ANSWERS[completion]
"""


def test_a_fault_in_a_reward_is_told_by_its_line_at_the_end_of_a_run(
    tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "faulty_rewards.py").write_text(SOURCE)
    prompts = "".join(json.dumps({"prompt": f"the film {n}"}) + "\n" for n in range(4))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    job = {
        "name": "run",
        "model": str(tiny_model),
        "rows_per_part": 2,
        "prompts": {"path": "prompts.jsonl", "max_prompt_tokens": 16},
        "sampling": {"candidates": 2, "max_completion_tokens": 8, "engines": {"cpus": 0.2}},
        "labeling": {"reward": {"function": "faulty_rewards:length"}},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    program = "import sys; from raydpo.cli import main; sys.exit(main(['label', 'job.yaml']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=1100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == 1
    run = f"run directory: {tmp_path}/runs/run (raydpo show {tmp_path}/runs/run)"
    lines = done.stderr.splitlines()
    assert lines[0].endswith(run)
    assert lines[-1] == run
    log = r"\d\d:\d\d:\d\d |\[\d{4}-.*network_util"  # the latter where there is no network
    said = [line for line in lines if not re.match(log, line)]
    assert len(said) <= 15, done.stderr
    told = "\n".join(said)
    assert "DataError: reward function 'faulty_rewards:length' raised KeyError" in told
    code = "return ANSWERS[completion]"
    assert f"    {tmp_path}/faulty_rewards.py:9, in look_up: {code}" in said
    assert "  rule: a reward function is `def reward(prompts, completions, **kwargs)`" in told
    [where] = re.findall(r"^  traceback: (.+)$", told, re.MULTILINE)
    assert "KeyError" in Path(where).read_text()
