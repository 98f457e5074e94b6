"""Supervised fine-tuning, and preferences from people, through the command line on real Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.cli import main
from raydpo.run import read_manifest, read_rows
from raydpo.storage import folder_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def write_job(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"name": "run", "output": str(folder), **values}))
    return str(path)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_fine_tuning_learns_the_text_and_leaves_a_model_that_loads(tiny_model, tmp_path) -> None:
    rows = [{"text": "the film was very good and I loved the acting"} for _ in range(32)]
    sft = {
        "data": write_rows(tmp_path / "text.jsonl", rows),
        "loss_on": "all",
        "max_sequence_tokens": 64,
        "global_batch_sequences": 8,
        "epochs": 5,
        "learning_rate": 5e-3,
        "warmup_fraction": 0.0,
    }
    assert main(["sft", write_job(tmp_path, {"model": str(tiny_model), "sft": sft})]) == 0
    policy = tmp_path / "run/sft/policy"
    losses = [
        json.loads(line)["loss"] for line in (policy / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert len(losses) == 20
    assert losses[-1] < 0.25 * losses[0]
    tokenizer = AutoTokenizer.from_pretrained(policy / "model")
    model = AutoModelForCausalLM.from_pretrained(policy / "model")
    start = tokenizer("the film was", return_tensors="pt")["input_ids"]
    output = model.generate(start, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(output[0], skip_special_tokens=True) == rows[0]["text"]


def test_votes_of_people_become_the_preferences_that_the_reference_scores(
    tiny_model, tmp_path
) -> None:
    prompts = [{"prompt": f"the film {number}"} for number in range(6)]
    path = write_rows(tmp_path / "prompts.jsonl", prompts)
    job = write_job(
        tmp_path,
        {
            "model": str(tiny_model),
            "prompts": {"path": path, "max_prompt_tokens": 32},
            "sampling": {"candidates": 3, "max_completion_tokens": 8},
        },
    )
    run = str(tmp_path / "run")
    assert main(["sample", job]) == 0
    assert main(["reference", job]) == 1  # nobody has judged anything yet
    assert main(["annotate", "export", run]) == 0
    pairs = [json.loads(line) for line in (tmp_path / "run/annotation.jsonl").open()]
    votes = [{**pair, "choice": "a", "annotator": who} for pair in pairs for who in ("ann", "bo")]
    assert main(["annotate", "import", run, write_rows(tmp_path / "votes.jsonl", votes)]) == 0
    assert main(["reference", job]) == 0
    folder = folder_of(str(tmp_path / "run/round-000"))
    manifest = read_manifest(folder.child("preferences"))
    chosen = {
        row["completion_texts"][pair["chosen"]]
        for row in read_rows(folder.child("preferences"), manifest)
        for pair in row["pairs"]
    }
    assert chosen == {pair["completion_a"] for pair in pairs}
    assert (
        read_manifest(folder.child("reference"))["counts"]["output"] == manifest["counts"]["output"]
    )
