"""One of two nodes lost for good inside each stage of an online round: the tables are the same.

With RAYDPO_TEST_ALL_STAGES set, as `make test-faults` does, all five stages are tried, else one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from tests.conftest import ROOT
from tests.integration.runs import manifest, write_prompts

pytestmark = pytest.mark.slow
TABLES = ("candidates", "scores", "preferences", "reference", "policy")
#: The first file of a stage: the node goes while the rest is made.
MOMENTS = {
    "sampling": "candidates/_parts/00001.json",
    "scoring": "scores/_parts/00001.json",
    "reference": "reference/_parts/00001.json",
    "training": "policy/checkpoints/checkpoint_*/checkpoint.json",
    "evaluation": "evaluation/*/_parts/00000.json",
}
ALWAYS = {"sampling"}
LAST = pytest.mark.skipif(
    "RAYDPO_TEST_ALL_STAGES" not in os.environ, reason="RAYDPO_TEST_ALL_STAGES is not set"
)
STAGES = [pytest.param(one, marks=[] if one in ALWAYS else LAST) for one in MOMENTS]


def node(cpus: int, number: int) -> dict[str, Any]:
    # Ray turns 127.0.0.1 into the machine's own address; others of loopback it leaves. Each node
    # has its own: of two with the head's, the driver would join the one that started last.
    address = f"127.0.0.{number + 2}"
    return {"num_cpus": cpus, "node_ip_address": address, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head: an engine and another stage's worker find no room on it at the same time."""
    started = Cluster(initialize_head=True, head_node_args=node(2, 0))
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost-nodes")
    write_prompts(folder, heldout=6)
    reward = {"function": "tests.integration.rewards:count_e"}
    values: dict[str, Any] = {
        "output": str(folder),
        "seed": 5,
        "rows_per_part": 3,
        "model": str(tiny_model),
        "stream_stages": False,
        "prompts": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 32},
        "sampling": {
            "candidates": 3,
            "max_completion_tokens": 12,
            "engines": {"count": 2, "cpus": 1.5},
        },
        "labeling": {"reward": reward, "pairs": {"builder": "all_pairs"}},
        "training": {
            "cpus_per_worker": 0.5,
            "global_batch_groups": 4,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 1,
            "trackers": [],
        },
        "online": {"rounds": 1},
        "evaluation": {
            "prompts": {"path": str(folder / "heldout.jsonl"), "max_prompt_tokens": 32},
            "judge": reward,
            "samples_per_prompt": 2,
            "heldout_fraction": 0,
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder / "job.yaml"


def start(job: Path, cluster: Cluster, name: str, *settings: str) -> subprocess.Popen[str]:
    drive = [sys.executable, "-m", "tests.integration.drive", "never", str(job.parent / name)]
    command = [*drive, "online", str(job), "--set", f"name={name}"]
    command += [part for one in settings for part in ("--set", one)]
    log = (job.parent / f"{name}.log").open("w")
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, text=True)


def log_of(job: Path, name: str) -> str:
    return (job.parent / f"{name}.log").read_text()


def fingerprints(run: Path) -> dict[str, str]:
    return {table: manifest(run, table)["fingerprint"] for table in TABLES}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, job: Path) -> dict[str, str]:
    """On the head alone: where work is done changes nothing."""
    small = ("sampling.engines.count=1", "sampling.engines.cpus=0.2")
    assert start(job, cluster, "undisturbed", *small).wait(600) == 0, log_of(job, "undisturbed")
    return fingerprints(job.parent / "undisturbed")


@pytest.mark.timeout(1300)  # on a machine on which others work
@pytest.mark.parametrize("stage", STAGES)
def test_a_node_lost_for_good_inside_a_stage_changes_no_table(
    stage: str, cluster: Cluster, job: Path, undisturbed: dict[str, str]
) -> None:
    second = cluster.add_node(**node(3, 1))
    settings = ["stream_stages=true"] if stage == "sampling" else []
    run = start(job, cluster, stage, *settings)
    tick = threading.Event()
    while not list((job.parent / stage / "round-000").glob(MOMENTS[stage])):
        assert run.poll() is None, log_of(job, stage)
        tick.wait(0.02)
    cluster.remove_node(second, allow_graceful=False)
    assert run.wait(600) == 0, log_of(job, stage)
    assert "the cluster has lost a node: 1 node(s) with 2 CPUs" in log_of(job, stage)
    assert fingerprints(job.parent / stage) == undisturbed
