"""A cluster whose GCS is killed: drivers end with an error of raydpo's, before Ray ends them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
#: A program that starts a cluster, lets another one join it and kills the GCS. Then it waits itself.
DRIVER = """
import os, subprocess, sys, time
import psutil
import ray
from raydpo.core.cluster import connected, start
from raydpo.core.errors import ClusterError

def work():
    print("at work", flush=True)
    ray.get(ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote())

def waits(address, work):
    began = time.monotonic()
    try:
        with connected(address):
            work()
    except ClusterError as error:
        print(f"{type(error).__name__}: {error}")
    print(f"left after {time.monotonic() - began:.0f} s", flush=True)

if sys.argv[1:]:
    waits(sys.argv[1], work)
else:
    start()
    other = subprocess.Popen(
        [sys.executable, __file__, ray.get_runtime_context().gcs_address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "24"},
    )
    while other.stdout.readline() != "at work\\n":
        assert other.poll() is None
    [gcs] = [c for c in psutil.Process().children() if c.name() == "gcs_server"]
    gcs.kill()
    print("joined:", other.communicate()[0], flush=True)
    print("own:")
    waits(None, lambda: time.sleep(600))
"""


def test_a_driver_whose_gcs_is_killed_ends_with_an_error_that_says_how_it_goes_on(tmp_path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    joined, own = done.stdout.split("own:")
    assert "has not answered for 16 s" in joined
    assert "ended (signal SIGKILL)" in own
    for said in (joined, own):
        assert "ClusterError: the GCS of the Ray cluster" in said
        assert "way out: " in said
        assert "the same command goes on from here" in said
    assert "left after " in own  # by itself; where it cannot, as a joined one may, it is ended
