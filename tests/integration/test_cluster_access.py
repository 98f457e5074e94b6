"""A cluster that raydpo starts: from where it can be reached."""

from __future__ import annotations

import ipaddress

import psutil
import pytest
import ray

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def reachable(address: str) -> bool:
    """Whether other machines can connect to what listens on an address."""
    listens = ipaddress.ip_address(address)
    return not (getattr(listens, "ipv4_mapped", None) or listens).is_loopback


def test_all_that_listens_listens_on_loopback() -> None:
    ray.get(ray.remote(lambda: None).remote())
    mine = psutil.Process()
    listening = {
        (process.name(), connection.laddr.ip)
        for process in [mine, *mine.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [where for where in listening if reachable(where[1])] == []
