"""`raydpo run` refuses bad input with value, rule and way out, before it even imports Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.cli import main
from raydpo.core.lock import locked
from raydpo.core.run import run_folder
from tests.conftest import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model, and one without a chat template."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "good", seed=0)
    make_tiny_model(folder / "no_template", seed=0)
    (folder / "no_template" / "chat_template.jinja").unlink()
    return folder


def job(models: Path, work: Path) -> dict[str, Any]:
    rows = [{"prompt": f"the film {n}", "chosen": " good", "rejected": " bad"} for n in range(4)]
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    equal = [{**row, "rejected": row["chosen"]} for row in rows]
    (work / "equal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in equal))
    turns = [{"messages": [{"role": "user", "content": "hello"}]}]
    (work / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    return {
        "name": "run",
        "output": str(work),
        "model": str(models / "good"),
        "preferences": {
            "path": str(work / "pairs.jsonl"),
            "max_prompt_tokens": 64,
            "max_completion_tokens": 64,
        },
        "training": {},
    }


CASES = {
    "unknown key": (["training.learning_rat=1"], "unknown key; did you mean 'learning_rate'"),
    "missing file": (["preferences.path={work}/absent.jsonl"], "there is no such file"),
    "wrong column": (["preferences.id_column=number"], "'number'"),
    "no room": (["preferences.max_prompt_tokens=5000"], "max_position_embeddings 256"),
    "zero pairs": (["preferences.path={work}/equal.jsonl"], "4 rows were read, and none is left"),
    "no room for a batch": (
        [
            "preferences=null",
            "prompts={{path: {work}/pairs.jsonl, max_prompt_tokens: 64}}",
            "sampling.max_completion_tokens=64",
            "sampling.engines={{device: cpu, max_batch_tokens: 100}}",
            "labeling.reward={{function: tests.integration.rewards:count_e}}",
        ],
        "max_batch_tokens 100, sequences of up to 128 tokens",
    ),
    "template missing": (
        [
            "preferences=null",
            "model={models}/no_template",
            "prompts={{path: {work}/chat.jsonl, max_prompt_tokens: 64}}",
            "sampling.max_completion_tokens=64",
            "labeling.reward={{function: tests.integration.rewards:count_e}}",
        ],
        "chat template",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_value_rule_and_way_out(name, models, tmp_path, capsys) -> None:
    overrides, expected = CASES[name]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(models, tmp_path)))
    arguments = ["run", str(tmp_path / "job.yaml")]
    for override in overrides:
        arguments += ["--set", override.format(work=tmp_path, models=models)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert "rule:" in error
    assert "way out:" in error
    assert not (tmp_path / "run").exists()


def test_directory_in_use_is_refused_and_says_by_whom(models, tmp_path, capsys) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(models, tmp_path)))
    with locked(run_folder(str(tmp_path), "run")):
        assert main(["run", str(tmp_path / "job.yaml")]) == 1
    assert "RunLockedError" in (error := capsys.readouterr().err)
    assert "is in use by process" in error


@pytest.mark.thorough
def test_bad_input_is_refused_before_ray_is_imported(models, tmp_path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(models, tmp_path)))
    code = (
        "import sys; from raydpo.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "assert 'ray' not in sys.modules and 'vllm' not in sys.modules\n"
        "sys.exit(status)"
    )
    command = ["run", str(tmp_path / "job.yaml"), "--set", "preferences.path=absent.jsonl"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "AssertionError" not in done.stderr
    assert "there is no such file" in done.stderr


@pytest.mark.parametrize("rows", ["-1", "0", "x", "9" * 30])
def test_a_number_of_rows_that_cannot_be_is_refused(rows, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["check", "job.yaml", "--rows", rows])
    assert "is no whole number from 1 on" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_terminal_of_few_letters_shows_the_others_escaped(models, tmp_path) -> None:
    values = job(models, tmp_path)
    row = {"prompt": "the 🎬", "chosen": " good", "rejected": " bad"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "raydpo.cli", "check", str(tmp_path / "job.yaml")]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr
    assert "the \\U0001f3ac" in done.stdout
