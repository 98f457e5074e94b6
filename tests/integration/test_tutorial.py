"""The first tutorial and its notebook, run as a reader would, one after the other in one folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tutorial_pages import ROOT, commands_of, files_of, save_files

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "tutorials" / "first-run.md"
NOTEBOOK = ROOT / "docs" / "notebooks" / "first-run.ipynb"
#: All in one process, which imports torch and Ray once.
RUN_BOTH = (
    "import json, sys\n"
    "from pathlib import Path\n"
    "from raydpo.cli import main\n"
    "from tests.notebook_cells import run_notebook\n"
    "made = run_notebook(Path(sys.argv[1]))\n"
    "result, run = made['result'], made['run']\n"
    "assert result.policy == run.policy()\n"
    "assert result.metrics == {**run.evaluation(), 'report': run.report()}\n"
    "model, tokenizer = made['model'], made['tokenizer']\n"
    "assert model.config.vocab_size == len(tokenizer)\n"
    "print('the notebook is done', file=sys.stderr)\n"
    "for arguments in json.loads(sys.argv[2]):\n"
    "    status = main(arguments)\n"
    "    assert status == 0, (arguments, status)\n"
)


def test_the_first_tutorial_and_its_notebook_do_what_they_say(tmp_path: Path) -> None:
    """The notebook runs the job; the commands find each of its stages finished, as the job is one."""
    save_files([PAGE], tmp_path)
    for name in files_of(PAGE):
        if name != "mine/job.yaml":  # the notebook writes the others, and has the job in a cell
            (tmp_path / name).unlink()
    commands = [shlex.split(c)[1:] for c in commands_of(PAGE) if c.startswith("raydpo ")]
    assert [command[0] for command in commands] == ["check", "run", "show", "run"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_BOTH, str(NOTEBOOK), json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name, text in files_of(PAGE).items():
        assert (tmp_path / name).read_text(encoding="utf-8") == text, name
    by_notebook, by_commands = done.stderr.split("the notebook is done")
    assert "nothing to do" not in by_notebook
    assert by_commands.count("nothing to do") >= 6
    evaluation = tmp_path / "runs" / "brevity" / "round-000" / "evaluation"
    assert (evaluation / "report.html").is_file()
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    before, after = metrics["reference"]["score"]["mean"], metrics["policy"]["score"]["mean"]
    assert before < 0.5
    assert after > 0.8
    assert "no problems found" in done.stdout
    [plan] = re.findall(r"^```\n(prompts +kept\n.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert plan in done.stdout
