"""Send a trained policy from the train worker to all engines at once.

The model's folder is on the worker's own disk. Afterwards the engines hold the model and know its
fingerprint. The worker still writes the model's files, so that a run can resume. Engines that
received nothing, or too late, read those files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.util

from raydpo.config.job import ModelConfig
from raydpo.core.errors import own_errors
from raydpo.models.loading import weights_fingerprint
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.transfer import TIMEOUT, Delivery, Meeting, listening, send, specs_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Broadcast:
    """Sends models into the engines of a pool; picklable, called where the model was made."""

    pool: EnginePool

    def __call__(self, folder: Path, device: torch.device) -> bool:
        """Send the model in a folder; what goes wrong leaves the engines to read its files.

        Returns whether all of them took it.

        Args:
            folder: with safetensors, on this machine.
            device: of this process.
        """
        fingerprint = str(weights_fingerprint(ModelConfig(path=str(folder))))
        started = time.monotonic()
        try:
            self._send(folder, fingerprint, device)
        except Exception as error:  # noqa: BLE001 - gloo, NCCL and Ray raise what they like
            self.pool.report(fingerprint, f"not sent, engines read the files: {error}")
            return False
        seconds = time.monotonic() - started
        self.pool.report(fingerprint, f"sent by the train worker in {seconds:.3f} s")
        return True

    def _send(self, folder: Path, fingerprint: str, device: torch.device) -> None:
        engines = [seat.handle for seat in self.pool.seats()]
        ranks = self.pool.settings.tensor_parallel
        size = 1 + ranks * len(engines)
        host: str = ray.util.get_node_ip_address()
        with listening(host) as listener:
            port: int = listener.getsockname()[1]
            meeting = Meeting(host, port, size, 0, device.type == "cuda")
            delivery = Delivery(fingerprint, specs_of(folder), meeting)
            calls: list[Any] = []
            for place, engine in enumerate(engines):
                own = replace(meeting, first_rank=1 + ranks * place)
                calls.append(engine.receive.remote(replace(delivery, meeting=own)))

            def check() -> None:
                ended, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
                ray.get(ended)

            with own_errors():
                send(folder, meeting, listener, check, device)
                ray.get(calls, timeout=TIMEOUT.total_seconds())
