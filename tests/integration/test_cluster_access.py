"""Who can reach a cluster that raydpo starts, and from where."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from raydpo.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def reachable(address: str) -> bool:
    """Whether other machines can connect to what listens on an address."""
    listens = ipaddress.ip_address(address)
    return not (getattr(listens, "ipv4_mapped", None) or listens).is_loopback


def listening() -> set[tuple[str, str]]:
    """What this process and those below it listen on now: names of processes, and addresses."""
    mine = psutil.Process()
    found: set[tuple[str, str]] = set()
    for process in [mine, *mine.children(recursive=True)]:
        try:
            name = (process.cmdline() or [process.name()])[0]
            connections = process.net_connections("inet")
        except psutil.Error:  # it ended meanwhile
            continue
        listens = (c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN)
        found |= {(Path(name).name, address) for address in listens}
    return found


def test_all_that_listens_listens_on_loopback() -> None:
    ray.get(ray.remote(lambda: None).remote())
    found = listening()
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert [where for where in found if reachable(where[1])] == []


def test_train_workers_listen_on_loopback(tiny_model: Path, tmp_path: Path) -> None:
    pair = {"prompt": "the film was", "chosen": " very good", "rejected": " bad and slow"}
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({**pair, "prompt": f"the film {n} was"}) + "\n" for n in range(8))
    )
    job = {
        "name": "run",
        "output": str(tmp_path),
        "model": str(tiny_model),
        "preferences": {
            "path": str(tmp_path / "pairs.jsonl"),
            "max_prompt_tokens": 32,
            "max_completion_tokens": 32,
        },
        "training": {
            "num_workers": 2,
            "cpus_per_worker": 0.5,
            "global_batch_groups": 4,
            "epochs": 2,
            "learning_rate": 1e-3,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    found: set[tuple[str, str]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            found.update(listening())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert main(["run", str(tmp_path / "job.yaml")]) == 0
    finally:
        over.set()
        looking.join()
    assert any("RayTrainWorker" in name for name, _ in found)
    assert [where for where in found if reachable(where[1])] == []


_CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR")
print("got in:", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


_JOINS = """
import sys, ray
from raydpo.core.cluster import start
start(sys.argv[1])
print("got in:", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def client(address: str, home: Path, **variables: str) -> subprocess.Popen[str]:
    """A driver of its own, of another user's home, who knows what the variables say."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", _CLIENT, address],
        env={
            **own,
            "HOME": str(home),
            "RAY_gcs_server_port_wait_time_s": "1",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray asks the machine's other address
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """All that a client printed; one that still waits is ended."""
    try:
        return process.communicate(timeout=400)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def test_who_does_not_know_the_token_is_refused(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    token = Path.home() / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    strangers = [
        client(address, tmp_path),
        client(address, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64),
    ]
    knows = client(address, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    assert "got in: 42" in said(knows)
    for stranger in strangers:
        output = said(stranger)
        print(output)
        assert "got in" not in output
        assert "nauthenticated" in output or "token" in output.lower()


def test_another_command_joins_a_cluster_that_listens_on_loopback_only() -> None:
    address = ray.get_runtime_context().gcs_address
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    joined = subprocess.run(
        [sys.executable, "-c", _JOINS, address],
        env={**own, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "got in: 42" in joined.stdout, joined.stderr
