"""Adapters, sharding, ranges of workers and damaged checkpoints on real Ray Train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

import raydpo
from raydpo.cli import main
from raydpo.core.run import read_manifest, read_rows
from raydpo.core.storage import folder_of
from tests.integration.callbacks import noted_events

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job on existing preferences that trains an adapter, sharded, on one or two workers."""
    folder = tmp_path_factory.mktemp("adapter")
    rows = [
        {"prompt": f"the film {n} was", "chosen": " very good", "rejected": " bad and slow"}
        for n in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "model": str(tiny_model),
        "rows_per_part": 12,
        "preferences": {
            "path": str(folder / "pairs.jsonl"),
            "max_prompt_tokens": 64,
            "max_completion_tokens": 32,
        },
        "training": {
            "strategy": "fsdp",
            "num_workers": [1, 2],
            "cpus_per_worker": 0.5,
            "lora": {"rank": 4},
            "global_batch_groups": 6,
            "epochs": 2,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 2,
            "keep_checkpoints": 2,
            "keep_best_by": "rewards/margins",
            "background_checkpoints": True,
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder / "job.yaml"


def metrics(policy: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (policy / "metrics.jsonl").read_text().splitlines()]


def greedy(model: Any) -> list[int]:
    ids = torch.tensor([[5, 6, 7, 8]])
    return model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0].tolist()


def test_killed_with_its_newest_checkpoint_damaged_it_goes_on_and_leaves_an_adapter(
    job, tiny_model, request
) -> None:
    run = job.parent / "run"
    policy = run / "round-000/policy"
    command = [sys.executable, "-m", "tests.integration.drive", "checkpoints", str(run)]
    killed = subprocess.run([*command, "training", str(job)], timeout=900, cwd=ROOT, check=False)
    assert killed.returncode == -9
    newest = max((policy / "checkpoints").glob("checkpoint_*/checkpoint.json")).parent
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    request.getfixturevalue("ray_cluster")
    assert main(["training", str(job)]) == 0
    rows = metrics(policy)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["rewards/margins"] > 0.01
    best = sorted(rows[1::2], key=lambda row: row["rewards/margins"])[-2:]
    kept = (policy / "checkpoints").glob("checkpoint_*/checkpoint.json")
    steps = {json.loads(path.read_text())["step"] for path in kept}
    assert steps == {8, *(row["step"] for row in best)}
    merged = AutoModelForCausalLM.from_pretrained(policy / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, str(policy / "adapter"))
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )
    assert greedy(merged) == greedy(adapted)

    raydpo.publish_run(str(run), str(job.parent / "public"), base_model="org/base")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model)
    published = PeftModel.from_pretrained(fresh, str(job.parent / "public"))
    assert greedy(published) == greedy(merged)
    card = ModelCard((job.parent / "public/README.md").read_text())
    assert (card.data.library_name, card.data.base_model) == ("peft", "org/base")


@pytest.mark.usefixtures("ray_cluster")
def test_score_gives_the_reference_s_logps_of_every_completion(job, tiny_model, capsys) -> None:
    callbacks = "callbacks=[tests.integration.callbacks:note_event]"
    assert main(["score", str(job), "--set", callbacks]) == 0
    ended = [(event["kind"], event["folder"]) for event in noted_events(job.parent / "run")]
    assert ended == [("stage", "score/preferences"), ("stage", "score/logps")]
    assert "pair_accuracy" in capsys.readouterr().out
    folder = folder_of(str(job.parent / "run/score/logps"))
    manifest = read_manifest(folder)
    assert manifest is not None
    scored = list(read_rows(folder, manifest))
    assert len(scored) == 48
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    preferences = folder_of(str(job.parent / "run/score/preferences"))
    first = next(read_rows(preferences, read_manifest(preferences) or {}))
    for row, completion in zip(scored, first["completions"], strict=False):
        ids = torch.tensor([first["prompt_ids"] + completion])
        with torch.no_grad():
            logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        own = logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(first["prompt_ids"]) - 1 :]
        assert row["id"] == first["group_id"]
        assert row["completion_ids"] == completion
        assert row["token_logps"] == pytest.approx(own.tolist(), abs=1e-5)
        assert row["logps"] == pytest.approx(own.sum().item(), abs=1e-4)
