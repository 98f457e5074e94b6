"""`raydpo suite`: results of lm-evaluation-harness in the run, and files for other suites."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from trained_runs import job, write_evaluation, write_rows, write_run

from raydpo.cli import main
from raydpo.core.errors import DataError, RunError
from raydpo.core.run import read_manifest
from raydpo.core.storage import folder_of
from raydpo.evaluation.lm_eval import Harness, numbers_of
from raydpo.show.publish import publish_run
from raydpo.show.suite import write_suite_file

#: Stands for the harness: it notes its arguments, and writes a results file as the harness does.
HARNESS = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open(os.environ["NOTED"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
values = dict(zip(arguments[::2], arguments[1::2]))
model = values["--model_args"].split(",")[0].removeprefix("pretrained=")
assert Path(model, "config.json").is_file(), model
if values["--tasks"] == "no_such_task":
    sys.exit(3)
results = {
    "results": {
        "ifeval": {"alias": "ifeval", "prompt_level_strict_acc,none": 0.25, "prompt_level_strict_acc_stderr,none": 0.02},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"},
    },
    "n-samples": {"ifeval": {"original": 541, "effective": 100}, "gsm8k": {"original": 9, "effective": 9}},
    "n-shot": {"ifeval": 0, "gsm8k": 5},
}
output = Path(values["--output_path"], "policy")
output.mkdir(parents=True)
(output / "results_2026-01-01.json").write_text(json.dumps(results))
"""


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    """An evaluated run of a policy."""
    run = write_run(job(tmp_path), tiny_model)
    write_evaluation(run)
    return run


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for the harness is importable in processes of this test; it notes calls here."""
    packages = tmp_path / "packages"
    for name in ("lm_eval", "lm_eval-9.9.dist-info"):
        (packages / name).mkdir(parents=True)
    (packages / "lm_eval/__main__.py").write_text(HARNESS)
    (packages / "lm_eval-9.9.dist-info/METADATA").write_text("Name: lm_eval\nVersion: 9.9\n")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(packages), *([before] if before else [])])
    )
    monkeypatch.setenv("NOTED", str(tmp_path / "noted.jsonl"))
    return tmp_path / "noted.jsonl"


def calls(noted: Path) -> list[list[str]]:
    return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


def test_results_are_kept_shown_and_published_with_what_they_depend_on(
    run: Path, noted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["suite", "lm-eval", str(run), "--tasks", "ifeval,gsm8k"]
    more = [
        "--option",
        "limit=100",
        "--option",
        "apply_chat_template",
        "--model-arg",
        "dtype=float32",
    ]
    more += ["--model-arg", f"tokenizer={run}/tokenizer"]
    assert main([*command, *more]) == 0
    assert "ifeval prompt_level_strict_acc 0.2500 ± 0.0200" in capsys.readouterr().out
    [arguments] = calls(noted)
    assert arguments[:2] == ["--model", "hf"]
    assert arguments[3].endswith(f"/policy,dtype=float32,tokenizer={run}/tokenizer")
    assert arguments[-3:] == ["--limit", "100", "--apply_chat_template"]
    folder = run / "round-000/suites/lm-eval/ifeval+gsm8k"
    manifest = read_manifest(folder_of(str(folder)))
    policy = read_manifest(folder_of(str(run / "round-000/policy")))
    assert manifest is not None
    assert policy is not None
    assert manifest["inputs"] == {"policy": policy["fingerprint"]}
    assert manifest["settings"]["version"] == "9.9"
    assert json.loads((folder / "results.json").read_text())["n-shot"]["gsm8k"] == 5

    assert main([*command, *more, "--option", "batch_size=8"]) == 0  # where it runs is no content
    assert len(calls(noted)) == 1
    assert main(["show", str(run)]) == 0
    said = (
        "lm-evaluation-harness 9.9: ifeval prompt_level_strict_acc 0.2500 ± 0.0200 on 100 examples"
    )
    assert (
        f"{said} (0-shot, dtype float32, tokenizer tokenizer, limit 100, apply_chat_template)"
        in capsys.readouterr().out
    )

    publish_run(str(run), str(tmp_path / "public"))
    card = ModelCard((tmp_path / "public/README.md").read_text())
    results = {found.dataset_name: found for found in card.data.eval_results or []}
    assert results["ifeval"].metric_value == 0.25
    assert "limit 100" in str(results["ifeval"].metric_name)
    assert str(tmp_path) not in str(card)
    assert results["ifeval"].source_name == "lm-evaluation-harness 9.9"
    assert results["gsm8k"].metric_type == "exact_match"
    assert "Numbers of other tasks are by lm-evaluation-harness 9.9." in card.text


def test_results_of_earlier_weights_are_neither_published_nor_kept_in_place(
    run: Path, noted: Path, tmp_path: Path
) -> None:
    assert main(["suite", "lm-eval", str(run), "--tasks", "ifeval"]) == 0
    manifest = run / "round-000/suites/lm-eval/ifeval/manifest.json"
    values = json.loads(manifest.read_text())
    values["inputs"]["policy"] = "e" * 64
    values["key"] = "another"
    _write_checked(manifest, values)
    publish_run(str(run), str(tmp_path / "public"))
    assert "ifeval" not in (tmp_path / "public/README.md").read_text()
    assert main(["suite", "lm-eval", str(run), "--tasks", "ifeval"]) == 0
    assert len(calls(noted)) == 2
    assert list((run / "round-000/suites/lm-eval").glob("ifeval.set-aside-*"))


def _write_checked(path: Path, values: dict[str, Any]) -> None:
    from raydpo.core.checked import write_checked

    values.pop("checksum")
    write_checked(folder_of(str(path.parent)), path.name, values)


def test_without_the_harness_the_error_says_how_to_get_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "python-without-lm-eval"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    empty.chmod(0o700)
    for python in (str(empty), str(tmp_path / "nowhere")):
        assert main(["suite", "lm-eval", str(run), "--tasks", "a", "--python", python]) == 1
        said = capsys.readouterr().err
        assert f"ConfigError: {python} has no lm-evaluation-harness" in said
        assert "pip install lm-eval" in said
    assert not (run / "round-000/suites").exists()


def test_a_harness_that_fails_leaves_no_results(
    run: Path, noted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suite", "lm-eval", str(run), "--tasks", "no_such_task"]) == 1
    assert "9.9 ended with status 3 and left no results" in capsys.readouterr().err
    assert not list((run / "round-000/suites").rglob("manifest.json"))
    own = ["--tasks", "a", "--option", "model_args=pretrained=gpt2"]
    assert main(["suite", "lm-eval", str(run), *own]) == 1
    assert "ConfigError: --option model_args" in capsys.readouterr().err
    assert len(calls(noted)) == 1


def test_only_what_was_asked_for_is_a_number() -> None:
    results = {
        "results": {
            "mmlu_law": {"alias": " - law", "acc,none": 0.3},
            "mmlu": {"alias": "mmlu", "acc,none": 0.4, "acc_stderr,none": 0.01},
        },
        "groups": {"mmlu": {"alias": "mmlu", "acc,none": 0.4, "acc_stderr,none": 0.01}},
    }
    [found] = numbers_of(results, Harness("python", ("mmlu",)), "1")
    assert (found.task, found.metric, found.value) == ("mmlu", "acc", 0.4)
    assert found.interval == pytest.approx((0.4 - 0.0196, 0.4 + 0.0196))
    by_pattern = numbers_of(results, Harness("python", ("mmlu*",)), "1")
    assert {one.task for one in by_pattern} == {"mmlu", "mmlu_law"}


def _evaluated(run: Path, messages: list[list[dict[str, str]] | None]) -> None:
    prompts = [
        {"prompt_id": f"p{n}", "prompt": f"text {n}", "messages": said, "prompt_ids": [1]}
        for n, said in enumerate(messages)
    ]
    write_rows(run / "round-000/evaluation-prompts", "prompts", prompts)
    for side in ("policy", "reference"):
        samples = [_sample(f"p{n}", k, side) for n in range(len(messages)) for k in range(2)]
        write_rows(run / f"round-000/evaluation/{side}_samples", "candidates", samples)


def _sample(prompt: str, candidate: int, side: str) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "candidate": candidate,
        "prompt": "rendered",
        "prompt_ids": [1],
        "completion": f"{side} {prompt}/{candidate}",
        "completion_ids": [7, candidate],
        "sampler_token_logps": None,
        "finish_reason": "stop",
        "seed": 0,
        "policy": "weights",
    }


def test_completions_are_written_in_the_formats_of_alpaca_eval_and_arena_hard(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _evaluated(run, [None, [{"role": "user", "content": "Why?"}]])
    assert main(["suite", "alpaca-eval", str(run)]) == 0
    file = run / "round-000/suites/alpaca-eval/policy/model_outputs.json"
    assert f"file: {file}" in capsys.readouterr().out
    assert json.loads(file.read_text()) == [
        {"instruction": "text 0", "output": "policy p0/0", "generator": "reviews"},
        {"instruction": "Why?", "output": "policy p1/0", "generator": "reviews"},
    ]
    assert main(["suite", "arena-hard", str(run), "--of", "reference", "--name", "base"]) == 0
    lines = (run / "round-000/suites/arena-hard/reference/model_answer.jsonl").read_text()
    first, second = map(json.loads, lines.splitlines())
    assert (first["uid"], first["model"]) == ("p0", "base")
    assert second["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": {"answer": "reference p1/0"}},
    ]
    assert first["ans_id"] != second["ans_id"]
    # No stage of the run itself was touched, and the card is as without the files.
    assert main(["suite", "alpaca-eval", str(run)]) == 0
    assert publish_run(str(run), str(run.parent / "public")).files


def test_prompts_that_are_no_single_text_are_refused(run: Path, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    _evaluated(run, [turns])
    with pytest.raises(DataError, match="p0 has the messages system, user"):
        write_suite_file(str(run), "alpaca-eval")
    values = yaml.safe_load((run / "config.yaml").read_text())
    (run / "round-000/evaluation-prompts/manifest.json").unlink()
    with pytest.raises(RunError, match="evaluation-prompts is not there"):
        write_suite_file(str(run), "alpaca-eval")
    assert values["name"] == "reviews"


TASK = """\
task: own_reviews
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: [" bad", " great"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_the_real_harness_runs_a_task_of_ones_own(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    python = os.environ.get("RAYDPO_LM_EVAL_PYTHON")
    if python is None:
        pytest.skip("RAYDPO_LM_EVAL_PYTHON names no interpreter with lm-eval[hf]")
    rows = [{"prompt": f"film {n} was", "label": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text(TASK.replace("DATA", str(tmp_path / "rows.jsonl")))
    own = ["--tasks", "own_reviews", "--include-path", str(tasks), "--python", python]
    options = ["--model-arg", "dtype=float32", "--option", "device=cpu", "--option", "log_samples"]
    assert main(["suite", "lm-eval", str(run), *own, *options]) == 0
    printed = capfd.readouterr().out
    assert "own_reviews acc 0." in printed
    assert "on 6 examples (0-shot, dtype float32)" in printed
    folder = run / "round-000/suites/lm-eval/own_reviews"
    assert len(list(folder.glob("samples/*.jsonl"))) == 1
    assert str(run) not in (folder / "results.json").read_text()
