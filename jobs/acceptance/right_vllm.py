"""The pipeline with vLLM for CUDA: the whole demo, pushes into live engines, sleep.

What comes in: a context. What goes out: what the production commands say, run as a user runs
them on the models in assets/. They stop by themselves where an engine's log-probs differ from
the trainer's, and where a stage cannot do its work.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from .task import Context, LeftOut, Task, Values

_ROOT: Final = Path(__file__).parents[2]
_ASLEEP: Final = "[engines] asleep"
_SENT: Final = re.compile(r"sent by the train worker in ([0-9.]+) s")
_PUSHED: Final = re.compile(r"pushed into the engines in ([0-9.]+) s")
#: Two rounds: the policy is pushed after the first.
_ROUNDS: Final = {"online.rounds": 2, "training.num_workers": 1, "training.device": "cuda"}
_SHARED: Final = {
    "sampling.engines.sleep": "true",
    "sampling.engines.gpu_share": 0.6,
    "labeling.reward.gpus_per_worker": 0.4,
    "reference.gpus_per_worker": 0.4,
    "training.gpus_per_worker": 0.4,
}


def demo(context: Context, needed: int, settings: dict[str, Any]) -> Values:
    """`make demo` on CUDA: every stage, and the report."""
    _need(needed)
    overrides = {"training.num_workers": 1, "training.device": "cuda", **settings}
    output = _raydpo(context, "demo.py", overrides)
    reports = [str(path.name) for path in context.folder.rglob("*.html")]
    return {"seconds": output.seconds, "report": ", ".join(reports), "passed": bool(reports)}


def push(context: Context, said: re.Pattern[str], settings: dict[str, Any]) -> Values:
    """Online rounds whose policies get into live engines; the probe holds each of them."""
    _need(2)  # an engine that lives through the training, and the train worker
    output = _raydpo(context, "online_dpo.py", {**_ROUNDS, **settings})
    seconds = output.seconds_said(said)
    return {"seconds": output.seconds, "push seconds": seconds, "passed": bool(seconds)}


def sleep(context: Context) -> Values:
    """Memory that engines give back while they sleep, on a GPU that the other stages share."""
    _need(1)
    output = _raydpo(context, "online_dpo.py", {**_ROUNDS, **_SHARED})
    slept = [number for number, line in enumerate(output.lines) if _ASLEEP in line]
    before = max(output.used_bytes[: slept[0]]) if slept else 0
    asleep = min((output.used_bytes[number] for number in slept), default=0)
    pushes = output.seconds_said(_PUSHED)
    return {
        "seconds": output.seconds,
        "awake GB": before / 1e9,
        "asleep GB": asleep / 1e9,
        "push seconds": pushes,
        "passed": bool(slept and pushes) and asleep < before / 2,
    }


class _Output:
    """What a command printed, and the memory in use on the first GPU at each of its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.used_bytes: list[int] = []
        self.seconds = 0.0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.used_bytes.append(_used_bytes())

    def seconds_said(self, pattern: re.Pattern[str]) -> list[float]:
        """Of each line that has them."""
        return [float(found[1]) for line in self.lines if (found := pattern.search(line))]


def _raydpo(context: Context, job: str, settings: dict[str, Any]) -> _Output:
    """Run a job of `jobs/` into the scratch folder.

    Raises:
        RuntimeError: it failed; the worker's log has what it printed.
    """
    words = [sys.executable, str(_ROOT / "jobs" / job), "--set", f"output={context.folder}"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    output, started = _Output(), time.perf_counter()
    with subprocess.Popen(  # noqa: S603 (our own job)
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=_ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            output.add(line)
    output.seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"jobs/{job} ended with {process.returncode}: {output.lines[-1:]}")
    return output


def _used_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def _need(cards: int) -> None:
    """Say why a task cannot run here.

    Raises:
        LeftOut: no vLLM, no CUDA, or too few GPUs.
    """
    absent = [name for name in ("ray", "vllm") if importlib.util.find_spec(name) is None]
    if absent:
        raise LeftOut(f"not installed: {', '.join(absent)}")
    if not torch.cuda.is_available():
        raise LeftOut("it is for vLLM on CUDA; the tests run the same commands on CPU")
    if torch.cuda.device_count() < cards:
        raise LeftOut(f"{torch.cuda.device_count()} GPU here, and it needs {cards}")


_BY_NCCL: Final = {"sampling.engines.weight_transfer": "broadcast"}

VLLM_TASKS: list[Task] = [
    Task("vLLM: the whole demo", "right", 240, functools.partial(demo, needed=1, settings={})),
    Task("vLLM: sleep on a shared GPU", "right", 300, sleep),
    Task(
        "vLLM: push by files",
        "right",
        240,
        functools.partial(push, said=_PUSHED, settings={}),
    ),
    Task(
        "vLLM: push by NCCL",
        "right",
        240,
        functools.partial(push, said=_SENT, settings=_BY_NCCL),
    ),
    Task(
        "vLLM: tensor parallelism",
        "right",
        300,
        functools.partial(demo, needed=2, settings={"sampling.engines.tensor_parallel": 2}),
    ),
]
