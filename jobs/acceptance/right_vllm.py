"""The pipeline with vLLM for CUDA: the whole demo, pushes into live engines, sleep.

A task returns the output of production commands, run as a user runs them, on the models in
assets/. The commands stop by themselves if an engine's log-probs differ from the trainer's, or if
a stage cannot do its work.
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
_CUDA: Final = {
    "sampling.engines.device": "cuda",
    "training.device": "cuda",
    "training.num_workers": 1,
}
#: Two rounds: the policy is pushed after the first.
_ROUNDS: Final = {**_CUDA, "online.rounds": 2}
_SLEEPING: Final = {
    "sampling.engines.sleep": "true",
    "sampling.engines.gpu_share": 0.6,
    "labeling.reward.gpus_per_worker": 0.4,
    "reference.gpus_per_worker": 0.4,
    "training.gpus_per_worker": 0.4,
}
#: What is run, by the end of the task's name: a job, and what is set in its configuration.
RUNS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "the whole demo": ("demo", _CUDA),
    "sleep on a shared GPU": ("online_dpo", {**_ROUNDS, **_SLEEPING}),
    "push by files": ("online_dpo", _ROUNDS),
    "push by NCCL": ("online_dpo", {**_ROUNDS, "sampling.engines.weight_transfer": "broadcast"}),
    "tensor parallelism": ("demo", {**_CUDA, "sampling.engines.tensor_parallel": 2}),
}


def demo(context: Context, name: str, needed: int) -> Values:
    """`make demo` on CUDA: every stage, and the report."""
    _need(needed)
    output = _raydpo(context, name)
    reports = [path.name for path in context.folder.rglob("report.html")]
    return {"seconds": output.seconds, "reports": len(reports), "passed": len(reports) == 1}


def push(context: Context, name: str, said: re.Pattern[str]) -> Values:
    """Online rounds whose policies get into live engines; the probe holds each of them."""
    _need(2)  # an engine that lives through the training, and the train worker
    output = _raydpo(context, name)
    seconds = output.seconds_said(said)
    return {"seconds": output.seconds, "push seconds": seconds, "passed": bool(seconds)}


def sleep(context: Context, name: str) -> Values:
    """Memory that engines give back while they sleep, on a GPU that the other stages share."""
    _need(1)
    output = _raydpo(context, name)
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


def overrides(name: str) -> list[str]:
    """`section.key=value` of a run."""
    return [f"{key}={value}" for key, value in RUNS[name][1].items()]


def _raydpo(context: Context, name: str) -> _Output:
    """Run a job of `jobs/` into the scratch folder.

    Raises:
        RuntimeError: it failed; the worker's log has what it printed.
    """
    job = _ROOT / "jobs" / f"{RUNS[name][0]}.py"
    words = [sys.executable, str(job), "--set", f"output={context.folder}"]
    words += [word for override in overrides(name) for word in ("--set", override)]
    torch.cuda.empty_cache()  # of the tasks before: engines want most of the GPU
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
        raise RuntimeError(f"{job.name} ended with {process.returncode}: {output.lines[-1:]}")
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


def _task(name: str, seconds: float, run: Any, **arguments: Any) -> Task:
    return Task(f"vLLM: {name}", "right", seconds, functools.partial(run, name=name, **arguments))


VLLM_TASKS: list[Task] = [
    _task("the whole demo", 240, demo, needed=1),
    _task("sleep on a shared GPU", 300, sleep),
    _task("push by files", 240, push, said=_PUSHED),
    _task("push by NCCL", 240, push, said=_SENT),
    _task("tensor parallelism", 300, demo, needed=2),
]
