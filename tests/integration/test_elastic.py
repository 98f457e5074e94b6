"""A training on a cluster that gains a node and loses it: its workers become two, and one again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from tests.integration.runs import write_pairs

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with room for one worker, on loopback."""
    started = Cluster(initialize_head=True, head_node_args=node())
    yield started
    started.shutdown()


def node() -> dict[str, Any]:
    # Ray turns 127.0.0.1 into the machine's own address; this one it leaves.
    return {"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False}


def write_job(folder: Path, model: Path) -> Path:
    values: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "model": str(model),
        "preferences": write_pairs(folder, 240),
        "training": {
            "num_workers": [1, 2],
            "resize_every_seconds": 0.5,
            "max_failures": 1,
            "global_batch_groups": 240,
            "max_tokens_per_micro_batch": 64,
            "epochs": STEPS,
            "learning_rate": 1e-4,
            "checkpoint_every_steps": 1,
            "keep_checkpoints": STEPS,
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder / "job.yaml"


def train(job: Path, cluster: Cluster, *overrides: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, on the cluster."""
    command = [sys.executable, "-m", "raydpo.cli", "training", str(job), *overrides]
    # A size that a lost node still counts in is given up soon.
    settings = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, text=True)


def look_at_nodes(cluster: Cluster) -> None:
    """Let Ray look at the cluster's nodes now: by itself it does every 20 s."""
    code = (
        f"import ray; ray.init({cluster.address!r}); name = 'AutoscalingCoordinator'; "
        "actor = ray.get_actor(name, namespace=name); "
        "ray.get(actor.get_reserved_resources.remote('', recompute=True))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def workers_by_step(policy: Path) -> dict[int, int]:
    """How many workers wrote the newest checkpoint of each step."""
    found: dict[int, int] = {}
    for path in sorted(policy.glob("checkpoints/checkpoint_*/checkpoint.json")):
        checkpoint = json.loads(path.read_text())
        found[checkpoint["step"]] = sum(name.endswith(".distcp") for name in checkpoint["files"])
    return found


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    tick = threading.Event()
    while not what():
        assert process.poll() is None, "it ended first"
        tick.wait(0.1)


def losses(policy: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (policy / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.mark.timeout(1800)  # 200 s where nothing else runs
def test_workers_follow_the_cluster_s_size_and_change_nothing(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    job = write_job(tmp_path, tiny_model)
    policy = tmp_path / "run/round-000/policy"
    run = train(job, cluster)
    wait_for(lambda: len(workers_by_step(policy)) >= 2, run)
    second = cluster.add_node(**node())
    look_at_nodes(cluster)
    wait_for(lambda: list(workers_by_step(policy).values()).count(2) >= 2, run)
    cluster.remove_node(second, allow_graceful=False)
    assert run.wait() == 0
    workers = [count for _, count in sorted(workers_by_step(policy).items())]
    assert len(workers) == STEPS
    sizes = [count for index, count in enumerate(workers) if workers[index - 1 : index] != [count]]
    assert sizes == [1, 2, 1]

    fixed = ("name=fixed", "training.num_workers=1", "training.max_tokens_per_micro_batch=4096")
    assert train(job, cluster, *(part for one in fixed for part in ("--set", one))).wait() == 0
    other = tmp_path / "fixed/round-000/policy"
    assert [step for step, _ in losses(policy)] == list(range(1, STEPS + 1))
    torch.testing.assert_close(losses(policy), losses(other), rtol=1e-5, atol=1e-5)
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (policy, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
