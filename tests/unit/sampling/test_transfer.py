"""Weights sent between two threads that stand for a train worker and an engine's rank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raydpo.sampling import transfer
from raydpo.sampling.reload import ReloadingWorker
from raydpo.sampling.transfer import (
    Meeting,
    TensorSpec,
    arriving,
    joined,
    listening,
    send,
    specs_of,
)

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")


def write_model(folder: Path) -> dict[str, torch.Tensor]:
    """Two files of tensors in all dtypes that a policy is saved in."""
    first = {"a.weight": torch.randn(3, 4), "b.weight": torch.randn(2, 2).bfloat16()}
    second = {"c.bias": torch.randn(5).half(), "d.scale": torch.tensor(2.5)}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    return first | second


def receive(meeting: Meeting, rank: int, specs: tuple[TensorSpec, ...]) -> dict[str, torch.Tensor]:
    with joined(meeting, rank, CPU) as group:
        return dict(arriving(group, specs, CPU))


def nothing() -> None:
    """All receivers are still on their way."""


def test_tensors_arrive_in_every_receiver_as_they_lie_in_the_files(tmp_path: Path) -> None:
    expected, receivers = write_model(tmp_path), 2
    specs = specs_of(tmp_path)
    with listening("127.0.0.1") as listener, ThreadPoolExecutor(receivers) as ranks:
        port = listener.getsockname()[1]
        meeting = Meeting("127.0.0.1", port, 1 + receivers, 1, cuda=False)
        received = [ranks.submit(receive, meeting, rank, specs) for rank in range(receivers)]
        send(tmp_path, meeting, listener, nothing, CPU)
        for result in received:
            tensors = result.result()
            assert tensors.keys() == expected.keys()
            for name, tensor in tensors.items():
                assert tensor.dtype == expected[name].dtype
                assert torch.equal(tensor, expected[name])


def test_a_sender_does_not_wait_for_a_receiver_that_will_not_come(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("the engine is dead")

    with listening("127.0.0.1") as listener:
        meeting = Meeting("127.0.0.1", listener.getsockname()[1], 2, 1, cuda=False)
        with pytest.raises(ValueError, match="the engine is dead"):
            send(tmp_path, meeting, listener, fail, CPU)


def test_a_rank_that_cannot_join_says_so_before_vllm_touches_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Worker(ReloadingWorker):
        rank, device = 0, CPU

        def reload_weights(self, **arguments: object) -> None:
            raise AssertionError("half of the weights are worse than none")

    monkeypatch.setattr(transfer, "TIMEOUT", timedelta(seconds=1))
    with listening("127.0.0.1") as listener:
        port = listener.getsockname()[1]
    closed = Meeting("127.0.0.1", port, 2, 1, cuda=False)
    assert "rank 0 could not join the sender" in str(Worker().receive(closed, ()))
