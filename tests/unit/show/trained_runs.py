"""Run directories with a finished training, whose model is real and was never trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from raydpo.config.content import content_of
from raydpo.config.job import Config
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, commit_files, open_stage, write_part
from raydpo.core.storage import Folder

#: Stands in no file that is published, beside the folder of the test itself.
SECRET_HOST = "judges.internal.example"
STEPS = [{"step": n, "loss": loss, "num_tokens": 100.0} for n, loss in enumerate((0.7, 0.5), 1)]


def job(folder: Path, **sections: Any) -> dict[str, Any]:
    """A job whose data lies in the folder, and whose judge is a service."""
    return {
        "name": "reviews",
        "output": str(folder),
        "model": str(folder / "models/base"),
        "prompts": str(folder / "data/prompts.jsonl"),
        "labeling": {"reward": {"function": "rewards:own"}},
        "training": {"objective": {"name": "ipo", "tau": 0.2}, "learning_rate": 3e-6},
        "evaluation": {
            "prompts": str(folder / "data/heldout.jsonl"),
            "judge": {"http": {"url": f"https://{SECRET_HOST}/v1/score"}},
            "samples_per_prompt": 2,
        },
        **sections,
    }


def write_run(values: dict[str, Any], model: Path, adapter: Path | None = None) -> Path:
    """Write the run of a job whose training left this model, with nothing measured."""
    run = Path(values["output"]) / values["name"]
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    write_table(run / "round-000/prompts", "prompts", {"input": 1, "quarantined": 1})
    write_training(run / "round-000/policy", Config.model_validate(values), model, adapter)
    return run


def write_training(policy: Path, config: Config, model: Path, adapter: Path | None = None) -> str:
    """Write a finished training; return its fingerprint."""
    section = config.training or config.sft
    assert section is not None
    inputs = {"preferences": "p" * 64, "model": "b" * 64, "tokenizer": "t" * 64}
    stage = Stage(_place(policy), "train", None, inputs, content_of(section))
    open_stage(stage)
    for name, source in (("model", model), ("adapter", adapter)):
        for file in sorted(source.iterdir()) if source is not None else ():
            stage.folder.write_bytes(f"{name}/{file.name}", file.read_bytes())
    probe = [{"prompt_ids": [1, 5], "completions": [[7]], "token_logps": [[-1.0]]}]
    stage.folder.write_json("model/probe.json", probe)
    lines = [json.dumps(step) + "\n" for step in STEPS]
    stage.folder.write_bytes("metrics.jsonl", "".join(lines).encode())
    fingerprint = stage.folder.sha256("model/config.json")
    commit_files(stage, fingerprint, {"steps": 2, "last_metrics": STEPS[-1]})
    return fingerprint


def write_table(folder: Path, schema: str, counts: dict[str, int]) -> None:
    """Write a finished table without rows."""
    stage = Stage(_place(folder), schema, schema, {}, {})
    open_stage(stage)
    write_part(stage, 0, PartResult([]))
    commit(stage, counts)


def write_rows(folder: Path, schema: str, rows: list[dict[str, Any]]) -> None:
    """Write a finished table."""
    stage = Stage(_place(folder), schema, schema, {}, {})
    open_stage(stage)
    write_part(stage, 0, PartResult(rows))
    commit(stage, {})


def write_evaluation(run: Path, made_the_labels: bool = False, **changes: Any) -> None:
    """Write a finished evaluation of the policy of round 0."""
    policy = json.loads((run / "round-000/policy/manifest.json").read_text())["fingerprint"]
    stage = Stage(
        _place(run / "round-000/evaluation"),
        "evaluation",
        None,
        {"policy_weights": policy, **changes},
        {},
    )
    open_stage(stage)
    stage.folder.write_json("metrics.json", evaluated(made_the_labels))
    stage.folder.write_bytes("plots/score_against_kl.png", b"\x89PNG of the test")
    commit_files(stage, "hash")


def evaluated(made_the_labels: bool = False, score: float = 0.75) -> dict[str, Any]:
    """The content of metrics.json, as far as a card reads it."""

    def estimate(mean: float) -> dict[str, Any]:
        return {"mean": mean, "standard_error": 0.1, "ci95": [mean - 0.2, mean + 0.2]}

    return {
        "judge": {"scorers": ["v1/score"], "unit": "reward", "made_the_labels": made_the_labels},
        "reference": {"score": estimate(0.25), "completion_tokens": estimate(20.0)},
        "policy": {"score": estimate(score), "completion_tokens": estimate(30.0)},
        "win_rate": estimate(0.625),
        "length_controlled_win_rate": estimate(0.5),
        "kl": {"nats_per_completion": estimate(4.5)},
        "heldout": {"accuracy": estimate(0.5625)},
        "verdict": "Training helped, with reservations: a sentence.",
        "speaks_against_it": ["completions grew longer"],
        "notes": ["The KL is not exact."],
    }


def _place(folder: Path) -> Place:
    return Place(Folder(str(folder)), "test")
