"""Data, model and run directory in an object store: a bucket of moto's S3, on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from raydpo.config.job import ModelConfig
from raydpo.core.errors import RunLockedError
from raydpo.core.lease import Timing, leased
from raydpo.core.run import read_manifest, read_rows
from raydpo.core.storage import Folder, folder_of
from raydpo.models.loading import load_causal_lm, weights_fingerprint
from raydpo.training.metrics_log import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """An empty bucket, which this process and those that it starts reach by its URI."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="raydpo")
    yield folder_of("s3://raydpo")
    server.stop()


def job(bucket: Folder) -> dict[str, object]:
    return {
        "name": "run",
        "output": f"{bucket.uri}/runs",
        "rows_per_part": 3,
        "model": f"{bucket.uri}/tiny",
        "preferences": {
            "path": f"{bucket.uri}/data/*.jsonl",
            "max_prompt_tokens": 32,
            "max_completion_tokens": 32,
        },
        "training": {
            "num_workers": 2,
            "cpus_per_worker": 0.5,
            "global_batch_groups": 4,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 1,
        },
    }


def test_a_policy_is_trained_from_bucket_to_bucket(
    bucket: Folder, tiny_model: Path, tmp_path: Path
) -> None:
    row = {"prompt": "the film", "chosen": " was good", "rejected": " was bad"}
    data = [{**row, "prompt": f"the film {number}"} for number in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in data)
    bucket.child("data").write_bytes("pairs.jsonl", lines.encode())
    bucket.child("tiny").upload(tiny_model)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(bucket)))
    command = [sys.executable, "-m", "raydpo.cli", "training", str(tmp_path / "job.yaml")]
    # A process of its own, whose Ray workers know the bucket's address from the environment.
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]

    run = bucket.child("runs", "run")
    assert run.read_json("lease.json")["holder"].startswith("process ")
    assert not run.child("lease").files()
    quick = Timing(renewal_seconds=0.2, lapse_seconds=2.0)
    with leased(run, quick), pytest.raises(RunLockedError), leased(run, quick):
        pass

    folder = run.child("round-000")
    scored = read_manifest(folder.child("reference"))
    assert scored is not None
    assert len(list(read_rows(folder.child("reference"), scored))) == 8
    policy = read_manifest(folder.child("policy"))
    assert policy is not None
    trained = ModelConfig(path=folder.child("policy", "model").uri)
    assert policy["fingerprint"] == weights_fingerprint(trained)
    assert load_causal_lm(trained).num_parameters() > 0
    assert [row["step"] for row in read_metrics(folder.child("policy"))] == [1, 2]
    checkpoints = folder.child("policy", "checkpoints").files(recursive=True)
    assert any(name.endswith(".distcp") for name in checkpoints)
    assert any("tfevents" in name for name in folder.child("policy").files(recursive=True))
