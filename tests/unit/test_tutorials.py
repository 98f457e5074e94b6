"""Tutorials: every job is a valid configuration, every command is one that raydpo takes.

Commands that need a cluster (`ray job submit`, `kubectl`, `docker`, and all of tutorials/cluster.md)
are parsed only, and the files that they name have to be there: no test runs them. The first
tutorial is run by tests/integration/test_tutorial.py.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import raydpo
from raydpo.cli import command_parser
from raydpo.config.file import load_config
from tests.tutorial_pages import ROOT, TUTORIALS, commands_of, files_of, save_files

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "deploy" / "README.md"]
#: docs/commands.md is written from the parser itself.
COMMANDS = sorted({c for page in PAGES if page.name != "commands.md" for c in commands_of(page)})
JOBS = [
    pytest.param(name, text, id=name)
    for page in TUTORIALS
    for name, text in files_of(page).items()
    if name.endswith(".yaml")
]
#: Its models and data are in places that no test reaches.
ON_A_CLUSTER = "mine/cluster.yaml"


def test_tutorials_have_jobs_and_commands() -> None:
    assert len(JOBS) >= 5
    assert len(COMMANDS) >= 15
    yaml_blocks = sum(page.read_text("utf-8").count("```yaml") for page in TUTORIALS)
    assert yaml_blocks == len(JOBS)


@pytest.mark.parametrize(("name", "text"), JOBS)
def test_each_job_is_a_valid_configuration(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).name


def test_the_job_of_the_readme_is_a_valid_configuration(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [job] = re.findall(r"```yaml\n(name:.*?)```", text, re.DOTALL)
    (tmp_path / "job.yaml").write_text(job, encoding="utf-8")
    assert load_config(tmp_path / "job.yaml").training is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_that_there_is(tmp_path: Path, command: str) -> None:
    words = shlex.split(command)
    match words[0]:
        case "raydpo":
            command_parser().parse_args(words[1:])
        case "ray":
            _, script, *arguments = words[words.index("--") + 1 :]
            assert (ROOT / script).is_file()
            assert arguments[0] == "--config"
            command_parser().parse_args(["run", *arguments[1:]])
        case "make":
            targets = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE)
        case _:
            option = "-k" if words[0] == "kubectl" else "-f"
            assert (ROOT / words[words.index(option) + 1]).exists()


@pytest.mark.thorough
def test_raydpo_finds_nothing_wrong_with_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_files(TUTORIALS, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    [make_dataset] = re.findall(
        r"^```python\n(from datasets.*?)^```$",
        (ROOT / "docs" / "tutorials" / "existing-pairs.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    exec(make_dataset, {})
    problems = {
        name: [str(problem) for problem in raydpo.check_job(raydpo.load_job(name))]
        for name, _ in (job.values for job in JOBS)
        if name != ON_A_CLUSTER
    }
    assert len(problems) == len(JOBS) - 1
    assert not any(problems.values()), json.dumps(problems, indent=1)
