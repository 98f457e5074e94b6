"""End a run whose cluster lost its GCS, with an error of raydpo's own.

Without its GCS (Global Control Service) a cluster places no work and starts no process. Ray ends
the driver after a minute, from C++: no exception is raised, and no `finally` runs. Clients of the
GCS that Ray makes early keep the time that was set when Ray was imported, so raydpo cannot move
that end; it leaves before.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import ray
from ray._private import ray_constants, worker

from raydpo.core.errors import ClusterError
from raydpo.core.periodic import periodically
from raydpo.core.progress import logger

#: Ray's setting for how long a process waits for a GCS that is gone, and its default.
_SECONDS_OF_RAY: Final = "RAY_gcs_rpc_server_reconnect_timeout_s"
_DEFAULT_SECONDS: Final = 60.0
#: The share of that time after which raydpo leaves, and the one that leaving may take. What ends
#: actors and placement groups asks the GCS, and may not return.
_SHARE_OF_SECONDS: Final = 2 / 3
_SHARE_FOR_LEAVING: Final = 0.1
#: How long leaving may take on a cluster that this process started.
_LEAVE_SECONDS: Final = 30.0
_MORE_SECONDS_OF_RAY: Final = 60.0
_SECONDS_BETWEEN_LOOKS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
#: Calls the main thread out of whatever it waits for. Ray Train takes SIGINT for itself.
_SIGNAL: Final = signal.SIGUSR2
_RULE: Final = "a run needs the GCS of its cluster; what it has finished is whole in its directory"
_GO_ON: Final = "the same command goes on from here"


class _Lost(KeyboardInterrupt):
    """Raised in the main thread to end the run. Code that retries after errors does not catch it.

    Inside a call of Ray, signals may raise nothing else: Ray drops other exceptions.
    """


class Watch:
    """Looks after the GCS, and calls the main thread out of a block once it is gone.

    Args:
        gone: the error to raise if the GCS is gone, otherwise None.
        calls_main: whether the block runs in the main thread, which alone can be called.
        leave_seconds: how long the main thread may take to leave the run and the cluster.
    """

    def __init__(
        self, gone: Callable[[], ClusterError | None], calls_main: bool, leave_seconds: float
    ) -> None:
        self._gone = gone
        self._calls_main = calls_main
        self._leave_seconds = leave_seconds
        self._lock = threading.Lock()
        self._open = True
        self._leave_before = 0.0
        self.found: ClusterError | None = None

    def look(self) -> None:
        """Look once; end the process if the main thread was called and did not leave in time."""
        if self._open and self.found is None:
            self.found = self._gone()
            if self.found is not None:
                # The whole error: where the cluster was joined, Ray may end the process meanwhile.
                logger.error("[cluster] the run ends: %s", self.found)
                self._leave_before = time.monotonic() + self._leave_seconds
                self._call()
        elif self.found is not None and self._calls_main and time.monotonic() > self._leave_before:
            self._end(self.found)

    def look_again(self) -> None:
        """Look whether what the block raised came from a GCS that was gone already."""
        self.found = self.found or self._gone()

    def called(self, *_: object) -> None:
        """Handle the signal."""
        if self._open:
            raise _Lost

    def close(self) -> None:
        """Look no more: this process ends the cluster now, or leaves it."""
        with self._lock:
            self._open = False

    def _call(self) -> None:
        with self._lock:
            main = threading.main_thread().ident
            if self._open and self._calls_main and main is not None:
                signal.pthread_kill(main, _SIGNAL)

    def _end(self, error: ClusterError) -> NoReturn:
        """Do what Ray would do a little later, but say why."""
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def needing_gcs() -> Generator[Watch]:
    """Leave the block with an error once the GCS of the connected cluster is gone.

    A cluster that this process started has lost it when the process of the GCS has ended. One
    that was joined may get it back, within two thirds of the time that Ray gives it. If the block does not run
    in the main thread, only what it raises by itself becomes this error.

    Raises:
        ClusterError: the GCS is gone.
    """
    gone, leave_seconds = _look_of_this_cluster()
    in_main = gone is not None and threading.current_thread() is threading.main_thread()
    watch = Watch(gone or (lambda: None), in_main, leave_seconds)
    before = signal.signal(_SIGNAL, watch.called) if in_main else None
    try:
        with periodically("raydpo-gcs", watch.look, _SECONDS_BETWEEN_LOOKS, 1.0):
            yield watch
    except BaseException as error:
        if watch.found is not None:
            raise watch.found from (None if isinstance(error, KeyboardInterrupt) else error)
        raise
    finally:
        watch.close()
        if in_main:
            signal.signal(_SIGNAL, before)


@contextmanager
def ray_waits_longer() -> Generator[None]:
    """In a process that connects in the block, let Ray end the driver later than raydpo does."""
    before = os.environ.get(_SECONDS_OF_RAY)
    os.environ[_SECONDS_OF_RAY] = str(round(_seconds_of_ray() + _MORE_SECONDS_OF_RAY))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SECONDS_OF_RAY]
        else:
            os.environ[_SECONDS_OF_RAY] = before


def _seconds_of_ray() -> float:
    """How long Ray lets a process wait for a GCS that is gone."""
    try:
        return float(os.environ[_SECONDS_OF_RAY])
    except (KeyError, ValueError):
        return _DEFAULT_SECONDS


def _look_of_this_cluster() -> tuple[Callable[[], ClusterError | None] | None, float]:
    """How to look after the GCS of the connected cluster, and how long leaving it may take.

    There is no look if only the cluster's client server is known.
    """
    node: Any = getattr(worker.global_worker, "node", None)
    if node is None or getattr(worker.global_worker, "gcs_client", None) is None:
        return None, _LEAVE_SECONDS
    started = node.all_processes.get(ray_constants.PROCESS_TYPE_GCS_SERVER)
    if started:
        return lambda: _ended(started[0].process, node.get_logs_dir_path()), _LEAVE_SECONDS
    joined = _Joined(ray.get_runtime_context().gcs_address, _seconds_of_ray())
    return joined.gone, _seconds_of_ray() * _SHARE_FOR_LEAVING


def _ended(process: Any, logs: str) -> ClusterError | None:
    """The error for a GCS that this process started, if it has ended."""
    status = process.poll()
    if status is None:
        return None
    how = f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    return ClusterError(
        f"the GCS of the Ray cluster on this machine ended ({how})",
        _RULE,
        f"{_GO_ON}, on a new cluster; {logs}/gcs_server.out may say why it ended, often memory is short",
    )


def host_and_port(address: str) -> tuple[str, int] | None:
    """Take an address of a cluster apart; None if it names no port."""
    named = re.fullmatch(r"(?:ray://)?\[?([^\[\]/\s]+?)\]?:(\d+)", address)
    return (named[1], int(named[2])) if named else None


class _Joined:
    """The GCS of a cluster that was joined, at `address`; Ray waits for it for so many seconds."""

    def __init__(self, address: str, seconds_of_ray: float) -> None:
        self._address = address
        self._limit = seconds_of_ray * _SHARE_OF_SECONDS
        self._answered = time.monotonic()

    def gone(self) -> ClusterError | None:
        """The error if it has not answered for too long."""
        if self._answers():
            self._answered = time.monotonic()
            return None
        if time.monotonic() - self._answered < self._limit:
            return None
        return ClusterError(
            f"the GCS of the Ray cluster at {self._address} has not answered for {self._limit:.0f} s",
            _RULE,
            f"see why (`ray status --address {self._address}`) and start it again; {_GO_ON}. For a "
            f"GCS that takes longer to come back, set {_SECONDS_OF_RAY}",
        )

    @property
    def _patience(self) -> float:
        """How long a look waits for an answer, in seconds."""
        return min(_ANSWER_SECONDS, self._limit / 10)

    def _answers(self) -> bool:
        """Whether its port does; if not, whether a call over Ray's open connection does."""
        named = host_and_port(self._address)
        try:
            if named is not None:
                socket.create_connection(named, self._patience).close()
                return True
        except OSError:
            pass
        return self._answers_ray()

    def _answers_ray(self) -> bool:
        client: Any = getattr(worker.global_worker, "gcs_client", None)
        try:
            client.internal_kv_get(b"raydpo", namespace=None, timeout=self._patience)
        except Exception:  # noqa: BLE001 - whatever it raises, there was no answer
            return False
        return True
