"""The train loop on the device: the same losses whatever wraps the model.

A task returns how far losses, gradients and parameters differ from those of a plain run, after a
resume, and from those of a CPU. All runs use `raydpo.training.loop`, with models that production
code loads from disk.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import torch

from raydpo.config.base import ROUNDING_NATS
from raydpo.config.job import LoraSettings
from raydpo.training.export import Trained, export

from .task import Context, LeftOut, Task, Values
from .train import Run, make_data, model_settings, process_group, train_run, training_settings

#: Difference of a loss in nats, and of a gradient's norm by its size.
_TOLERANCES: Final = {"float32": 1e-4, "bfloat16": 2e-2}
#: The losses of a float32 run after 50 steps of AdamW, which enlarges what kernels round.
_FLOAT32_NATS: Final = 5e-3
#: In bfloat16 ours may be this many times as far from float32 as the CPU's own bfloat16.
_TIMES: Final = 2.0
_AND_NATS: Final = 1e-2


def step_zero(context: Context, precision: str) -> Values:
    """The policy is the reference before the first update: log-ratios at 0, the loss at log 2."""
    model = model_settings(context, precision)
    run = train_run(context, make_data(context, model), model, steps=1)
    limit = ROUNDING_NATS[precision]
    off = abs(run.losses[0] - math.log(2))
    return {
        "largest log-ratio": run.first_logratio,
        "loss minus log 2": off,
        "passed": run.first_logratio <= limit and off <= limit / 10,
        "tolerance": [limit, limit / 10],
    }


def follows_the_cpu(context: Context, precision: str) -> Values:
    """Fifty steps on the device, and on the CPU by transformers' own attention in float32."""
    steps = 10 if context.small else 50
    cpu = Context("cpu", context.small, context.seed, context.folder)
    plain = model_settings(cpu, "float32", layout="padded")
    data = make_data(cpu, plain)
    theirs = train_run(cpu, data, plain, steps)
    ours = train_run(context, data, model_settings(context, precision), steps)
    limit, facts = _FLOAT32_NATS, dict[str, Any]()
    if precision == "bfloat16":
        rounded = train_run(cpu, data, model_settings(cpu, precision, layout="padded"), steps)
        own = _difference(rounded.losses, theirs.losses)
        limit, facts = _TIMES * own + _AND_NATS, {"the CPU's bfloat16": own}
    difference = _difference(ours.losses, theirs.losses)
    learned = theirs.losses[0] - theirs.losses[-1]
    return {
        "steps": steps,
        "largest difference": difference,
        **facts,
        "first loss": ours.losses[0],
        "last loss": ours.losses[-1],
        "last loss on the CPU": theirs.losses[-1],
        "passed": difference < limit and learned > 10 * limit,
        "tolerance": limit,
    }


def same_as_plain(
    context: Context, precision: str, settings: dict[str, Any], wrapped_alone: bool = False
) -> Values:
    """Losses and gradients of a run with these settings against those of a run without."""
    if context.device != "cuda" and settings.get("cpu_offload"):
        raise LeftOut("cpu_offload keeps the parameters of a GPU in CPU memory")
    if context.device != "cuda" and settings.get("compile"):
        raise LeftOut("compiling takes minutes here; the trainer's tests compile on the CPU")
    model = model_settings(context, precision)
    data = make_data(context, model)
    plain = train_run(context, data, model)
    with process_group(context):
        other = train_run(context, data, model, wrapped_alone=wrapped_alone, **settings)
    limit = _TOLERANCES[precision]
    return {**compared(plain, other, limit), "first log-ratio": other.first_logratio}


def compared(plain: Run, other: Run, limit: float) -> Values:
    """How far a run is from another that it should equal."""
    difference = _difference(plain.losses, other.losses)
    pairs = zip(plain.norms, other.norms, strict=True)
    norms = max(abs(a - b) / b for a, b in pairs)
    memory = {"plain peak MB": plain.peak_bytes / 1e6, "peak MB": other.peak_bytes / 1e6}
    return {
        "losses": difference,
        "gradient norms": norms,
        "parameters": plain.distance(other),
        **(memory if plain.peak_bytes else {}),
        "passed": difference < limit and norms < 10 * limit,
        "tolerance": [limit, 10 * limit],
    }


def lora(context: Context, precision: str) -> Values:
    """An adapter: step 0 at 0, losses that fall, and the export equal to the trainer."""
    if importlib.util.find_spec("peft") is None:
        raise LeftOut("peft not installed")
    model = model_settings(context, precision)
    settings: dict[str, Any] = {"lora": {"rank": 8}, "learning_rate": 2e-3}
    run = train_run(context, make_data(context, model), model, **settings)
    adapter = training_settings(**settings).lora
    held = _exported(context, run, model_precision=precision, adapter=adapter)
    fell = run.losses[0] - run.losses[-1]
    passed = run.first_logratio <= ROUNDING_NATS[precision] and fell > 0.02
    return {"first log-ratio": run.first_logratio, "loss fell by": fell, **held, "passed": passed}


def export_equals_trainer(context: Context, precision: str) -> Values:
    """The exported folder, loaded again, against the trainer's forward pass.

    Raises:
        ModelError: by production code, which refuses an export that differs.
    """
    model = model_settings(context, precision)
    run = train_run(context, make_data(context, model), model)
    return _exported(context, run, model_precision=precision, adapter=None)


def resume(context: Context, precision: str, deterministic: bool) -> Values:
    """Stopped after half of the steps and gone on, against a run that was not stopped."""
    model = model_settings(context, precision)
    data = make_data(context, model)
    with _deterministic(deterministic) as without_kernel:
        whole = train_run(context, data, model, save_to=context.folder)
        again = train_run(context, data, model)
        resumed = train_run(context, data, model, resume_from=context.folder / "2")
    distance, twice = whole.distance(resumed), whole.distance(again)
    # Where kernels are not deterministic, two whole runs say how far apart runs are.
    limit = 3 * twice if context.device == "cuda" and (not deterministic or without_kernel) else 0.0
    return {
        "largest difference": distance,
        "of two whole runs": twice,
        "bitwise": distance == 0.0,
        **({"no deterministic kernel": "; ".join(without_kernel)} if without_kernel else {}),
        "passed": distance <= limit,
        "tolerance": limit,
    }


@contextmanager
def _deterministic(on: bool) -> Generator[list[str]]:
    """Torch's deterministic algorithms; fills in what it warns of: kernels that are not."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(on, warn_only=True)
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(False)
            texts = {str(one.message)[:80] for one in caught if "determinis" in str(one.message)}
            found += sorted(texts)


def _exported(
    context: Context, run: Run, model_precision: str, adapter: LoraSettings | None
) -> Values:
    source = model_settings(context, model_precision)
    trained = Trained(source, adapter, False, run.parameters, run.probed)
    held = export(trained, context.folder / "exported")
    return {
        "export differs by": held.largest_difference,
        "log-probs": held.values,
        "tolerance": held.tolerance,
    }


def _difference(ours: list[float], theirs: list[float]) -> float:
    """The largest of all steps, in nats."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


#: Name, precision, settings, and whether one rank is wrapped all the same.
_SAME: Final[tuple[tuple[str, str, dict[str, Any], bool], ...]] = (
    ("activation checkpointing", "bfloat16", {"activation_checkpointing": True}, False),
    ("DDP of one rank", "bfloat16", {"strategy": "ddp"}, True),
    ("FSDP2 of one rank", "bfloat16", {"strategy": "fsdp"}, True),
    ("FSDP2 of one rank", "float32", {"strategy": "fsdp"}, True),
    ("CPU offload", "bfloat16", {"strategy": "fsdp", "cpu_offload": True}, False),
    ("compile", "bfloat16", {"compile": True}, False),
)


def _task(name: str, precision: str, seconds: float, run: Any, **arguments: Any) -> Task:
    name = f"{name} {precision}"
    return Task(name, "right", seconds, functools.partial(run, precision=precision, **arguments))


TRAINING_TASKS: list[Task] = [
    *(_task("step 0", precision, 20, step_zero) for precision in _TOLERANCES),
    _task("export equals trainer", "bfloat16", 20, export_equals_trainer),
    *(_task("50 steps as on the CPU", precision, 60, follows_the_cpu) for precision in _TOLERANCES),
    _task("resume", "bfloat16", 20, resume, deterministic=False),
    _task("resume, deterministic,", "bfloat16", 20, resume, deterministic=True),
    _task("resume, deterministic,", "float32", 30, resume, deterministic=True),
    *(
        _task(
            name,
            precision,
            120 if "compile" in settings else 20,
            same_as_plain,
            settings=settings,
            wrapped_alone=wrapped,
        )
        for name, precision, settings, wrapped in _SAME
    ),
    _task("LoRA", "bfloat16", 20, lora),
]
