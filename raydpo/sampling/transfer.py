"""Send weights from one process to many: NCCL on CUDA, gloo on CPU, the same code.

The sender reads a model's folder on its own disk and broadcasts one tensor after another to every
receiving rank. Each model gets a new group of sender and ranks, so a restarted engine simply
joins the next one. This module knows nothing of engines; `broadcast.py` sends, `reload.py`
receives.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

#: How long ranks wait for each other, and for the next tensor.
TIMEOUT: Final = timedelta(seconds=120)
#: What a policy is saved in: torch's names of safetensors' dtypes.
_DTYPES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
#: In the group's store: how many have joined.
_JOINED: Final = "joined"
_SECONDS_BETWEEN_LOOKS: Final = 0.02


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will come: its name in the checkpoint, shape, and torch dtype by name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Meeting:
    """Where the sender (rank 0) and the engines' ranks form a group.

    Attributes:
        host: of the sender.
        port: where its store listens.
        size: all ranks.
        first_rank: of one engine's ranks; 0 for the sender.
        cuda: NCCL, else gloo.
    """

    host: str
    port: int
    size: int
    first_rank: int
    cuda: bool


@dataclass(frozen=True)
class Delivery:
    """What an engine needs before weights arrive: which, what tensors, and the meeting place."""

    fingerprint: str
    tensors: tuple[TensorSpec, ...]
    meeting: Meeting


def send(
    folder: Path,
    meeting: Meeting,
    listener: socket.socket,
    check: Callable[[], None],
    device: torch.device,
) -> None:
    """Broadcast the tensors of a folder, as rank 0.

    Args:
        folder: with safetensors.
        meeting: the group.
        listener: a socket on the meeting's port.
        check: called while others have not joined; raises where one never will.
        device: of this process.
    """
    store = _store(meeting, listener)
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while (joined := store.add(_JOINED, 0)) < meeting.size - 1:
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{joined} of {meeting.size - 1} receivers joined")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    with _group(meeting, 0, store, device) as group:
        for tensor in tensors_of(folder, device):
            _from_sender(group, tensor)


@contextlib.contextmanager
def joined(meeting: Meeting, rank: int, device: torch.device) -> Generator[Any]:
    """The group, as seen by one of an engine's ranks; it forms when all have joined."""
    store = _store(meeting, None)
    store.add(_JOINED, 1)
    with _group(meeting, meeting.first_rank + rank, store, device) as group:
        yield group


def arriving(
    group: Any, tensors: tuple[TensorSpec, ...], place: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint with their names, as they come in.

    Args:
        group: of sender and receivers.
        tensors: what comes, in order.
        place: where they are brought: on CUDA for NCCL, in CPU memory for gloo.
    """
    import torch

    for spec in tensors:
        tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=place)
        _from_sender(group, tensor)
        yield spec.name, tensor


@contextlib.contextmanager
def listening(host: str) -> Generator[socket.socket]:
    """A socket for the group's store, on the address by which others know this machine alone."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen()
        yield listener


def _store(meeting: Meeting, listener: socket.socket | None) -> Any:
    import torch.distributed as dist

    listens: dict[str, Any] = {} if listener is None else {"master_listen_fd": listener.detach()}
    store: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage] (it is documented there)
    return store(
        meeting.host,
        meeting.port,
        is_master=listener is not None,
        wait_for_workers=False,
        timeout=TIMEOUT,
        **listens,
    )


@contextlib.contextmanager
def _group(meeting: Meeting, rank: int, store: Any, device: torch.device) -> Generator[Any]:
    """A process group beside the default one, which training and vLLM have for themselves."""
    import torch

    group = (_nccl_group if meeting.cuda else _gloo_group)(meeting, rank, store, device)
    try:
        yield group
        if meeting.cuda:
            torch.cuda.synchronize(device)  # broadcasts are only queued until here
    finally:
        group.shutdown()


def _nccl_group(meeting: Meeting, rank: int, store: Any, device: torch.device) -> Any:
    """A group over NCCL; never run, for lack of a GPU."""
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(device)  # of this thread
    nccl: Any = dist.ProcessGroupNCCL
    group = nccl(store, rank, meeting.size, TIMEOUT)
    with _nccl_settings_of_torch() if rank else contextlib.nullcontext():
        _from_sender(group, torch.zeros(1, device=device))  # the first one makes the communicator
        torch.cuda.synchronize(device)
    return group


def _nccl_settings_of_torch() -> contextlib.AbstractContextManager[None]:
    """Undo vLLM's NCCL variables in the block: the sender lacks them, and unequal ones may hang."""
    if "vllm" not in sys.modules:
        return contextlib.nullcontext()
    from vllm.utils.nccl import unpinned_nccl_env

    return unpinned_nccl_env()


def _gloo_group(meeting: Meeting, rank: int, store: Any, _: torch.device) -> Any:
    import torch.distributed as dist

    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = TIMEOUT
    options._devices = [gloo.create_device(hostname=_own_host(meeting))]
    return gloo(store, rank, meeting.size, options)


def _own_host(meeting: Meeting) -> str:
    """The address of this machine on the way to the sender."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((meeting.host, meeting.port))  # of a datagram: nothing is sent
        return probe.getsockname()[0]


def _from_sender(group: Any, tensor: torch.Tensor) -> None:
    from torch.distributed import BroadcastOptions

    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()


def specs_of(folder: Path) -> tuple[TensorSpec, ...]:
    """What `tensors_of` gives; only the files' headers are read."""
    specs: list[TensorSpec] = []
    for file in _opened(folder, "cpu"):
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            part = file.get_slice(name)
            specs.append(TensorSpec(name, tuple(part.get_shape()), _DTYPES[part.get_dtype()]))
    return tuple(specs)


def tensors_of(folder: Path, device: torch.device) -> Iterator[torch.Tensor]:
    """The tensors in a folder's safetensors, file after file."""
    for file in _opened(folder, str(device)):
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            yield file.get_tensor(name)


def _opened(folder: Path, device: str) -> Iterator[Any]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device=device) as file:
            yield file
