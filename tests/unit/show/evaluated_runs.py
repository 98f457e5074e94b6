"""Run directories with finished evaluations, written without any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raydpo.config.content import content_of
from raydpo.config.job import Config, SamplingConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, commit_files, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.core.tables import Row
from raydpo.evaluation.samples import groups_of_samples

PROMPTS = ("a", "b", "c", "d")
JUDGE = "judges:first"
POLICY = "f" * 64
SAMPLING = SamplingConfig(candidates=2)
SETTINGS = {**content_of(SAMPLING), "candidates": 2, "seed": 0, "longest_prompt_tokens": 8}


def make_job(name: str, **sections: Any) -> dict[str, Any]:
    evaluation = {"prompts": "heldout.jsonl", "judge": {"function": JUDGE}, "samples_per_prompt": 2}
    return {
        "name": name,
        "model": "models/base",
        "prompts": "prompts.jsonl",
        "labeling": {"reward": {"function": "rewards:own"}},
        "training": {"objective": {"name": "dpo", "beta": 0.1}},
        "evaluation": evaluation,
        **sections,
    }


def write_run(folder: Path, name: str, gain: float, **changes: Any) -> Path:
    """A run of `raydpo run`: scores are 1 + `gain` and 2 + `gain`, each token is `gain` nats away.

    Args:
        folder: the run directory.
        name: of the job.
        gain: of the policy over its reference.
        changes: `job`, `inputs` of the samples, `scorer` settings, `weights` of the evaluated policy,
            `beta` of its job.
    """
    _write_job(folder, changes.get("job", make_job(name)))
    there = folder / "round-000/evaluation"
    inputs = changes.get("inputs", {})
    _write_samples(there, "policy_", gain, inputs, changes.get("scorer", {}))
    samples = _write_samples(there, "reference_", 0.0, inputs, changes.get("scorer", {}))
    groups = groups_of_samples(_place(there / "policy_groups"), samples)
    assert groups.manifest["counts"]["output"] == len(PROMPTS)
    _write_logps(there / "kl_policy", gain - 1.0)
    _write_logps(there / "kl_reference", -1.0)
    evaluated = {"policy_weights": changes.get("weights", POLICY)}
    job = Config.model_validate(changes.get("job", make_job(name)))
    assert job.training is not None
    beta = changes.get("beta", job.training.objective.kl_beta)
    settings = {"judges": [{"name": JUDGE, "weight": 1.0}], "beta": beta}
    stage = Stage(_place(there), "evaluation", None, evaluated, settings)
    open_stage(stage, keep_folders=True)
    stage.folder.write_bytes("report.html", b"<html>")
    commit_files(stage, "hash")
    _write_policy(folder / "round-000/policy", [0.7, 0.5])
    return folder


def write_online_run(folder: Path, name: str, gains: list[float]) -> Path:
    """A run of `raydpo online`, whose policy after each round gained so much; None is unmeasured."""
    _write_job(folder, make_job(name))
    _write_samples(folder / "original", "", 0.0, {}, {})
    for index, gain in enumerate(gains):
        there = folder / f"round-{index:03d}/evaluation"
        _write_samples(there, "", gain, {"policy": POLICY}, {}, logps=gain - 1.0)
        _write_logps(there / "original-logps", -1.0)
        _write_policy(folder / f"round-{index:03d}/policy", [0.7, 0.6, 0.5])
    _write_policy(folder / f"round-{len(gains):03d}/policy", [0.4])  # not evaluated yet
    return folder


def _write_job(folder: Path, job: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(job))


def _write_samples(
    there: Path,
    prefix: str,
    gain: float,
    inputs: dict[str, str],
    scorer: dict[str, Any],
    logps: float = -1.0,
) -> Table:
    rows = [_sample(prompt, number, logps) for prompt in PROMPTS for number in range(2)]
    made_from = {"prompts": "a" * 64, "tokenizer": "b" * 64, **inputs}
    samples = _table(there / f"{prefix}samples", "candidates", rows, made_from, SETTINGS)
    scores = [
        {
            "prompt_id": row["prompt_id"],
            "candidate": row["candidate"],
            "scorer": JUDGE,
            "value": 1.0 + row["candidate"] + gain,
            "rationale": None,
        }
        for row in rows
    ]
    settings = {"scorers": [{"name": JUDGE, **scorer}]}
    of = {"candidates": samples.fingerprint, f"source of {JUDGE}": "c" * 64}
    _table(there / f"{prefix}scores", "scores", scores, of, settings)
    return samples


def _write_logps(folder: Path, nats: float) -> None:
    rows = [{"group_id": p, "reference_token_logps": [[nats] * 3, [nats] * 3]} for p in PROMPTS]
    _table(folder, "reference", rows, {"model": "d" * 64}, {})


def _write_policy(folder: Path, losses: list[float]) -> None:
    stage = Stage(_place(folder), "train", None, {}, {})
    open_stage(stage)
    lines = [f'{{"step": {n}, "loss": {loss}}}\n' for n, loss in enumerate(losses, 1)]
    stage.folder.write_bytes("metrics.jsonl", "".join(lines).encode())
    commit_files(stage, POLICY)


def _table(
    folder: Path, schema: str, rows: list[Row], inputs: dict[str, str], settings: dict[str, Any]
) -> Table:
    stage = Stage(_place(folder), schema, schema, inputs, settings)
    open_stage(stage)
    write_part(stage, 0, PartResult(rows, counts={"input": len(rows)}))
    return Table(stage.folder, commit(stage, {}))


def _place(folder: Path) -> Place:
    return Place(Folder(str(folder)), "test")


def _sample(prompt: str, number: int, nats: float) -> Row:
    return {
        "prompt_id": prompt,
        "candidate": number,
        "prompt": f"text of {prompt}",
        "prompt_ids": [1, 5],
        "completion": f"{prompt}/{number}",
        "completion_ids": [7, 8, 9],
        "sampler_token_logps": [nats] * 3,
        "finish_reason": "length" if number else "stop",
        "seed": 0,
        "policy": "weights",
    }
