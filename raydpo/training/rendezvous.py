"""Let train workers find each other through torch's store, on loopback if one machine has them all.

Ray Train's group of workers becomes a process group of torch.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any, Final

import ray
import ray.util
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.torch import TorchConfig
from ray.train.torch import config as ray_torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

#: How long a worker may take to join.
_ANSWER_SECONDS: Final = 5.0
#: The store that this process serves, which lives as long as the process.
_SERVED: Final[list[TCPStore]] = []


class LocalTorchConfig(TorchConfig):
    """Ray Train's settings for torch, with a store that other machines reach only if necessary.

    torch's store listens on all interfaces and does not authenticate anyone. If the first worker's
    node has a loopback address, as in a cluster that raydpo starts, all workers are on one machine.
    Their store then gets a socket that listens on that address alone.
    """

    @property
    def backend_cls(self) -> Any:
        """The class with which Ray Train starts and ends process groups."""
        return _LocalTorchBackend


class _LocalTorchBackend(ray_torch._TorchBackend):  # pyright: ignore[reportPrivateUsage]
    """Ray's own steps, with another store if the workers' nodes are on loopback."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Form a process group of all workers.

        Raises:
            WorkerGroupStartupFailedError: a worker ended meanwhile. For this error Ray Train
                restarts the workers; the dead actor's own error would end the training.
        """
        try:
            self._join(worker_group, backend_config)
        except Exception as error:
            if _one_died(worker_group):
                text = "a worker ended while the workers were looking for each other"
                raise WorkerGroupStartupFailedError(text) from error
            raise

    def _join(self, worker_group: Any, backend_config: TorchConfig) -> None:
        served = worker_group.execute_single(0, _serve_store, backend_config.timeout_s)
        if served is None:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_use_store, *served)
        worker_group.execute(ray_torch._set_torch_distributed_env_vars)  # pyright: ignore[reportPrivateUsage]
        joined = [
            worker_group.execute_single_async(
                rank,
                ray_torch._setup_torch_process_group,  # pyright: ignore[reportPrivateUsage]
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method="env://",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)


def _one_died(worker_group: Any) -> bool:
    """Return whether a worker has ended; a busy worker has not."""
    for rank in range(len(worker_group)):
        try:
            ray.get(worker_group.execute_single_async(rank, os.getpid), timeout=_ANSWER_SECONDS)
        except RayActorError:
            return True
        except GetTimeoutError:
            continue
    return False


def _serve_store(timeout_s: int) -> tuple[str, int] | None:
    """Serve a store in this process.

    Returns:
        Its address and port; None if other machines can reach this node by its address.
    """
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        return None
    listening = socket.create_server((address, 0))
    port: int = listening.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listening.detach(),
    )
    _SERVED.append(store)
    return address, port


def _use_store(address: str, port: int) -> None:
    """Let torch join the store that exists already, even on the rank that would serve one."""
    os.environ.update(
        MASTER_ADDR=address, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True"
    )
