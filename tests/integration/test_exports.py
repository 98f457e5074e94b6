"""A tied model, trained sharded, whose export first fails and then runs alone."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.cli import main
from raydpo.core.run import read_manifest
from raydpo.core.storage import folder_of

pytestmark = pytest.mark.slow
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def job(liar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two workers on pairs; model, data, template and output are named from here."""
    monkeypatch.chdir(tmp_path)
    Path("the model").symlink_to(liar)
    Path("own.jinja").write_text(TEMPLATE)
    rows = [{"prompt": f"film {n}", "chosen": " good", "rejected": " bad"} for n in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {"max_prompt_tokens": 64, "max_completion_tokens": 32}
    values: dict[str, Any] = {
        "name": "run",
        "output": "out #1%20",
        "model": {"path": "the model", "chat_template": "own.jinja"},
        "preferences": {"path": "pairs.jsonl", **lengths},
        "training": {
            "strategy": "fsdp",
            "num_workers": 2,
            "cpus_per_worker": 0.5,
            "global_batch_groups": 4,
            "learning_rate": 1e-2,
            "trackers": [],
        },
    }
    Path("job.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "out #1%20/run/round-000/policy"


def put_in_the_way(policy: Path) -> None:
    """A file where the model's folder goes, once the stage is begun."""
    while not (policy / "plan.json").exists():
        time.sleep(0.05)
    (policy / "model").write_text("in the way")


def alone(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def test_an_export_that_failed_is_all_that_the_same_command_does(
    job: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = job
    threading.Thread(target=put_in_the_way, args=(policy,), daemon=True).start()
    assert main(["training", "job.yaml"]) == 1
    said = capfd.readouterr().err
    assert "RunError: the trained model cannot be written" in said
    assert "run the same command again: it only exports" in said.replace("\n", " ")
    assert read_manifest(folder_of(str(policy))) is None
    steps = (policy / "metrics.jsonl").read_text()

    (policy / "model").unlink()
    assert main(["training", "job.yaml"]) == 0
    assert (policy / "metrics.jsonl").read_text() == steps
    manifest = read_manifest(folder_of(str(policy)))
    assert manifest is not None
    assert manifest["export"]["largest_difference"] < 1e-4

    config = json.loads((policy / "model/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(policy / "model/model.safetensors")
    assert AutoTokenizer.from_pretrained(policy / "model").chat_template == TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(policy / "model", dtype=torch.float32).eval()
    for row in json.loads((policy / "model/probe.json").read_text()):
        for completion, logps in zip(row["completions"], row["token_logps"], strict=True):
            found = alone(model, row["prompt_ids"], completion)
            assert torch.allclose(found, torch.tensor(logps), atol=1e-4)
