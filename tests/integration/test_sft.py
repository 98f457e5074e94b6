"""Supervised fine-tuning through the command line, on real Ray."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.cli import main
from tests.integration.callbacks import noted_events

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_fine_tuning_learns_the_text_and_leaves_a_model_that_loads(tiny_model, tmp_path) -> None:
    text = "the film was very good and I loved the acting"
    data, job = tmp_path / "text.jsonl", tmp_path / "job.yaml"
    data.write_text((json.dumps({"text": text}) + "\n") * 32)
    sft = {
        "data": str(data),
        "loss_on": "all",
        "max_sequence_tokens": 64,
        "global_batch_sequences": 8,
        "epochs": 5,
        "learning_rate": 5e-3,
        "warmup_fraction": 0.0,
    }
    values = {"name": "run", "output": str(tmp_path), "model": str(tiny_model), "sft": sft}
    values["callbacks"] = ["tests.integration.callbacks:note_event"]
    job.write_text(yaml.safe_dump(values))
    assert main(["sft", str(job)]) == 0
    policy = tmp_path / "run/sft/policy"
    losses = [
        json.loads(line)["loss"] for line in (policy / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert len(losses) == 20
    assert losses[-1] < 0.25 * losses[0]
    events = noted_events(tmp_path / "run")
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 21))
    assert [event["metrics"]["loss"] for event in steps] == losses
    stages = [event["folder"] for event in events if event["kind"] != "step"]
    assert stages == ["sft/examples", "sft/policy"]
    tokenizer = AutoTokenizer.from_pretrained(policy / "model")
    model = AutoModelForCausalLM.from_pretrained(policy / "model")
    start = tokenizer("the film was", return_tensors="pt")["input_ids"]
    output = model.generate(start, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(output[0], skip_special_tokens=True) == text
