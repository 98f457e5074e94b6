"""An unusable cluster gives an error of three lines, within seconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.services import get_node_ip_address

from raydpo.core.cluster import _no_cluster, _on_loopback, start
from raydpo.core.errors import ClusterError

SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@pytest.fixture
def silent_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(form, silent_port) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        start(form.format(silent_port))
    assert time.monotonic() - began < 5
    assert f"{silent_port} cannot be used: ConnectionRefusedError" in caught.value.value
    assert "RAY_ADDRESS" in caught.value.way_out


def test_the_address_of_the_environment_is_refused_as_well(silent_port, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent_port}")
    with pytest.raises(ClusterError, match=f"Ray at 127.0.0.1:{silent_port}"):
        start()


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.9"), "--version"),
        (ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"), "RAY_AUTH_TOKEN"),
        (Exception("The current node timed out during startup. This could"), "less runs on this"),
        (ConnectionError("Could not find any running Ray instance"), "ray status"),
        (
            PermissionError("Token authentication is enabled (RAY_AUTH_MODE=token)"),
            "RAY_AUTH_TOKEN",
        ),
        (ValueError("Invalid address"), "traceback"),
    ],
)
def test_each_kind_of_failure_has_a_way_out(error: Exception, way_out: str) -> None:
    told = _no_cluster("10.0.0.1:6379", error)
    assert told.value.startswith("Ray at 10.0.0.1:6379 cannot be used: ")
    assert way_out in told.way_out
    assert len(str(told).splitlines()) == 3


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files: short, since the names of sockets in it may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def started(address: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Another process that connects, with waits that speak after a second."""
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO); "
        "from raydpo.core import cluster; from raydpo.core import waiting; waiting.FIRST_SECONDS = 1.0; "
        "cluster.JOIN_ATTEMPTS = 1; cluster.start(sys.argv[1] or None); print('connected')"
    )
    given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", code, address],
        env={**given, "RAY_TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_an_own_cluster_does_not_look_for_one_that_stood_here(
    silent_port: int, ray_folder: Path
) -> None:
    (ray_folder / "ray").mkdir()
    (ray_folder / "ray/ray_current_cluster").write_text(f"127.0.0.1:{silent_port}")
    done = started("", ray_folder)
    assert done.stdout == "connected\n", done.stderr
    assert "Ray on this machine" in done.stderr


@pytest.mark.slow
def test_joining_a_cluster_that_does_not_answer_speaks_and_gives_up(ray_folder: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:  # Ray asks another address of this machine
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = started(address, ray_folder, RAY_py_gcs_connect_timeout_s="1")
    assert f"[cluster] waits since 1 s for the cluster at {address} to take this driver" in (
        done.stderr
    )
    assert f"ClusterError: Ray at {address} cannot be used: ConnectionError: Failed" in done.stderr


def test_ray_takes_loopback_for_its_own_cluster_and_forgets_it_after(monkeypatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.delenv("VLLM_HOST_IP", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    before = dict(os.environ)
    with _on_loopback():
        assert get_node_ip_address() == "127.0.0.1"
        assert os.environ[SWITCH] == "0"  # for the processes of the cluster
        assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"  # what is set already stays
    assert dict(os.environ) == before
    assert ray_constants.ENABLE_RAY_CLUSTER


def test_who_asks_for_a_cluster_of_several_machines_gets_one(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.delenv("VLLM_HOST_IP", raising=False)
    with _on_loopback():
        assert ray_constants.ENABLE_RAY_CLUSTER
        assert "VLLM_HOST_IP" not in os.environ
    assert os.environ[SWITCH] == "1"
