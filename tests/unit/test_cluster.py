"""A cluster that cannot be used is told in three lines, within seconds."""

from __future__ import annotations

import socket
import time

import pytest

from raydpo.cluster import _no_cluster, start
from raydpo.errors import ClusterError


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
