"""Connect to Ray: to an existing cluster, or to a new one on this machine.

`start` and `connected` take an address or none; `cluster_size` reports what the cluster offers. A
cluster on this machine asks for a token: Ray's default token file, with the mode 0600.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import ray
import ray.data
from ray._private import ray_constants

from raydpo.core.errors import ClusterError
from raydpo.core.gcs import host_and_port, needing_gcs, ray_waits_longer
from raydpo.core.progress import logger
from raydpo.core.resources import Resources
from raydpo.core.waiting import Obstacle, waiting

#: Processes that Ray keeps idle at least; by itself it keeps as many as there are CPUs.
_IDLE_PROCESSES: Final = 4
#: Ray's name for the address of a cluster that it starts.
_OWN: Final = "local"
#: How long the port of a cluster may take to answer; Ray itself would wait for minutes.
_ANSWER_SECONDS: Final = 10.0
#: How often a cluster that is joined is asked for its id; each time Ray gives its GCS 40 seconds,
#: and by itself it asks twenty times.
JOIN_ATTEMPTS: Final = 2
_ATTEMPTS_OF_RAY: Final = "RAY_gcs_server_port_wait_time_s"
_LOOPBACK: Final = "127.0.0.1"
#: Ray's switch for clusters of several machines, by its name on the systems that have it off.
_SEVERAL_MACHINES: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
#: What makes libraries of the cluster's processes listen on loopback, too.
_OF_LIBRARIES: Final = {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": _LOOPBACK}
#: What helps, by what Ray says in the class or text of its error.
_WAYS_OUT: Final = (
    (
        r"Failed to connect to Ray cluster",  # though its port answers
        "look whether it runs (`ray status --address ADDRESS`); where it asks for a token, set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to it; else see that this "
        "is the port of Ray's GCS (6379)",
    ),
    (
        r"timed out during startup",  # Ray gives its own processes 30 s, which nobody can change
        "give the same command again when less runs on this machine: its processes took over 30 s "
        "to start",
    ),
    (
        r"Authentication|Unauthenticated|auth.token|RAY_AUTH",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token",
    ),
    (
        r"[Vv]ersion",
        "use the Ray and the Python of the cluster here: `ray --version` there and here tells",
    ),
    (
        r"Connection\w*Error|TimeoutError|OSError|gaierror|reach",
        "look whether it runs (`ray status --address ADDRESS`) and fix `ray_address` or "
        "RAY_ADDRESS; without them a cluster is started on this machine",
    ),
)


@contextmanager
def connected(address: str | None) -> Generator[None]:
    """Connect to the cluster at `address`, as `start` does; a cluster started here ends with the block.

    Raises:
        ClusterError: also in the block, when the cluster has lost its GCS.
    """
    already = ray.is_initialized()
    if not already:
        start(address)
    with needing_gcs() as watch:
        try:
            yield
        except BaseException:
            watch.look_again()
            raise
        finally:
            watch.close()
            if not already:
                ray.shutdown()


def start(address: str | None = None) -> None:
    """Connect to `address`, to RAY_ADDRESS, or to a cluster made on this machine.

    The last also where the address is "local". Without any address Ray would first try to join the
    cluster that /tmp/ray/ray_current_cluster names, a file that outlives its cluster.

    Raises:
        ClusterError: Ray cannot be reached there, or refuses, or does not start here.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray Train takes one checkpoint at a look, and sees the end of a training at the next one.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    verbose = logger.isEnabledFor(logging.DEBUG)  # the workers' own output too
    address = address or os.environ.get("RAY_ADDRESS")
    if address == _OWN:
        address = None
    if not address:
        _prepare_own_cluster()
    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        _refuse_silent_port(address)
        if not address:
            close_token()
        with ExitStack() as settings:
            if address:
                settings.enter_context(_joining(address))
                settings.enter_context(ray_waits_longer())
            if not address or _only_on_loopback(address):
                settings.enter_context(_on_loopback())
            ray.init(
                address=address or _OWN, logging_level=logging.ERROR, log_to_driver=verbose, **local
            )
    except Exception as error:
        raise _no_cluster(address, error) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else only its text reaches the driver
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns, once, that the progress bars are off: raydpo has lines of its own.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    if not verbose:  # Each prints a worker's whole traceback, and the command tells the same.
        for name in ("exceptions", "_internal.execution.streaming_executor_state"):
            logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    logger.info("Ray %s: %s", address or _own_cluster(), cluster_size())


def _refuse_silent_port(address: str | None) -> None:
    """Refuse an address whose port does not answer, if it names a port."""
    named = host_and_port(address or "")
    if named:
        socket.create_connection(named, timeout=_ANSWER_SECONDS).close()


def _only_on_loopback(address: str) -> bool:
    """Whether a cluster has a loopback address, and this machine's other address does not lead to it.

    Ray replaces a loopback address by the machine's other one. A cluster that another raydpo
    command started on this machine does not listen there.
    """
    named = host_and_port(address)
    if named is None or named[0] not in ("localhost", _LOOPBACK, "::1"):
        return False
    try:
        other = (ray.util.get_node_ip_address(), named[1])
        socket.create_connection(other, timeout=_ANSWER_SECONDS).close()
    except OSError:
        return True
    return False


@contextmanager
def _joining(address: str) -> Generator[None]:
    """Say what the block waits for, and let Ray give up in time."""
    obstacle = Obstacle(
        f"the cluster at {address} to take this driver",
        "its GCS gives no answer, or its node on this machine",
        f"their answer, or an error after {JOIN_ATTEMPTS} attempts of 40 s",
    )
    before = os.environ.get(_ATTEMPTS_OF_RAY)
    os.environ.setdefault(_ATTEMPTS_OF_RAY, str(JOIN_ATTEMPTS))
    try:
        with waiting("cluster", lambda: obstacle):
            yield
    finally:
        if before is None:  # a cluster that this process starts later waits for its GCS as usual
            del os.environ[_ATTEMPTS_OF_RAY]


def _no_cluster(address: str | None, error: Exception) -> ClusterError:
    said = f"{type(error).__name__}: {error}"
    first = next(line for line in said.splitlines() if line.strip())[:300]
    where = f"Ray at {address}" if address else "Ray on this machine"
    fitting = (way for pattern, way in _WAYS_OUT if re.search(pattern, said))
    way_out = next(
        fitting, "read the traceback; Ray's own logs lie in /tmp/ray/session_latest/logs"
    )
    return ClusterError(
        f"{where} cannot be used: {first}",
        "a command that computes is connected to a Ray cluster of the same version",
        way_out,
    )


def _prepare_own_cluster() -> None:
    """Set the environment of a cluster that starts here; keep values that are already set."""
    # No node of it is taken away: nobody need watch for that.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Idle processes that have imported torch are worth keeping, also on a machine of two CPUs.
    limit = str(max(_IDLE_PROCESSES, os.cpu_count() or 1))
    os.environ.setdefault("RAY_num_workers_soft_limit", limit)
    # Ray warns of more than four times as many processes as it starts at once.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", limit)


@contextmanager
def _on_loopback() -> Generator[None]:
    """Give a cluster that starts in the block the address 127.0.0.1, where alone it listens.

    A driver that joins such a cluster in the block keeps that address, too.

    Ray replaces 127.0.0.1 by an address that other machines reach, unless its switch for
    clusters of several machines is off, as on macOS and Windows. It reads the switch when it is
    imported. Whoever sets it to 1 gets a cluster that other machines reach.
    """
    several = os.environ.get(_SEVERAL_MACHINES, "0").lower() in ("1", "true")  # as Ray reads it
    added = {_SEVERAL_MACHINES: "0"} | ({} if several else _OF_LIBRARIES)
    before = {name: os.environ.get(name) for name in added}
    usual = ray_constants.ENABLE_RAY_CLUSTER
    os.environ |= {name: value for name, value in added.items() if before[name] is None}
    ray_constants.ENABLE_RAY_CLUSTER = several
    try:
        yield
    finally:  # this process may connect to another cluster later
        ray_constants.ENABLE_RAY_CLUSTER = usual
        for name in added:
            if before[name] is None:
                del os.environ[name]


def _own_cluster() -> str:
    """Describe the cluster that was started here, and where it can be reached from."""
    address = ray.util.get_node_ip_address()
    reach = "" if address == _LOOPBACK else ", open to whoever can reach it"
    token = "" if asks_for_token() else ", without a token"
    return f"on this machine ({address}{reach}{token})"


def cluster_size() -> Resources:
    """All that the connected cluster has now."""
    total: Any = ray.cluster_resources()
    return Resources(float(total.get("CPU", 0)), float(total.get("GPU", 0)))


def uses_cuda(device: str) -> bool:
    """Whether a `device` setting means CUDA on the connected cluster."""
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def asks_for_token() -> bool:
    """Whether a cluster that starts here asks for a token: always, unless Ray is told otherwise."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def close_token() -> None:
    """Ensure that no other user can read the token of a cluster that starts here.

    Ray makes a token where there is none, and leaves its file readable by everybody (0644). A token
    that the environment gives is left as it is.

    Raises:
        OSError: the file cannot be written.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or not asks_for_token():
        return
    file = Path.home() / ".ray" / "auth_token"
    if not file.exists():
        _make(file)
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        file.chmod(0o600)
        logger.info("%s had the mode %04o; it has 0600 now: it lets into clusters", file, mode)


def _make(file: Path) -> None:
    """Write a new token atomically, and keep one that another process writes meanwhile."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".auth_token-")
    try:
        with open(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(name)
    finally:
        Path(name).unlink()
