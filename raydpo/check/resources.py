"""Check CPUs, GPUs and memory, if the job runs on this machine; see `job.py`.

Facts and problems go to `Findings`. The check does not look at a cluster that has an address: it
may grow on demand.
"""

from __future__ import annotations

import os
from typing import Final

from raydpo.check.findings import Findings
from raydpo.check.machine import gpu_count, is_remote, memory_bytes, uses_cuda_here
from raydpo.config.job import Config, TrainerConfig, TrainingConfig
from raydpo.core.errors import ConfigError, RaydpoError
from raydpo.core.resources import Resources
from raydpo.models.loading import model_config_values, parameter_count
from raydpo.plan import ENGINES, stage_needs

#: Bytes of a parameter in training: float32 weight, gradient, and AdamW's two moments.
_BYTES_PER_PARAMETER: Final = 16
#: Bytes of a parameter under an adapter, or of a reference beside the policy: the weight alone.
_BYTES_PER_FROZEN_PARAMETER: Final = 4
_GIB: Final = 1 << 30


def check_resources(config: Config, findings: Findings) -> None:
    """Compare each stage's needs with this machine, and report the memory that training takes."""
    findings.attempt(_check_shares, config)
    if is_remote(config):
        findings.facts.append("resources: those of the cluster, which check does not look at")
    else:
        cpus, gpus = os.cpu_count() or 1, gpu_count()
        findings.facts.append(
            f"this machine: {cpus} CPUs, {gpus} GPUs, {memory_bytes() / _GIB:.1f} GiB of memory"
        )
        for needs in stage_needs(config):
            total = needs.total(gpus > 0)
            there = (total.cpus, total.gpus)
            findings.attempt(_check_stage, needs.stage, needs.device, there, (cpus, gpus))
        for name, section in (("training", config.training), ("sft", config.sft)):
            if section is not None:
                findings.attempt(_check_offload, name, section)
        findings.attempt(_check_tensor_parallel, config)
    for name, section in (("training", config.training), ("sft", config.sft)):
        if section is not None:
            _check_memory(config, name, section, findings)


def training_bytes(section: TrainerConfig, parameters: int) -> tuple[int, int]:
    """Bytes of weights, gradients and AdamW's moments: of one worker, and of all together.

    Of a range of workers, with the fewest. An adapter's own parameters are not counted.
    """
    each = _BYTES_PER_FROZEN_PARAMETER if section.lora else _BYTES_PER_PARAMETER
    whole = parameters * each
    if section.strategy == "fsdp":
        return whole * section.replicas // section.fewest_workers, whole * section.replicas
    return whole, whole * section.fewest_workers


def live_reference_bytes(config: Config, section: TrainerConfig) -> int:
    """Bytes of the reference that every worker holds, whole, where the objective runs it; else 0.

    Raises:
        ModelError: its parameters cannot be counted.
    """
    if not isinstance(section, TrainingConfig) or not section.objective.uses_live_reference:
        return 0
    return _BYTES_PER_FROZEN_PARAMETER * parameter_count(config.reference_model)


def _check_shares(config: Config) -> None:
    """Shares of GPUs that could never be had together, whatever the cluster."""
    engines = config.sampling.engines
    left = 1 - engines.gpu_share if engines.sleep else 1.0
    for needs in stage_needs(config):
        if needs.stage == ENGINES or needs.device == "cpu":
            continue
        room, share = Resources(0, left), Resources(0, needs.gpus)
        if not room.hold(share):
            raise ConfigError(
                f"a worker of {needs.stage} holds {needs.gpus:g} of a GPU",
                f"engines that sleep (sampling.engines.sleep) leave {left:g} of each (1 - gpu_share)",
                f"set its gpus_per_worker to {left:g} or less",
            )
        trains = needs.stage in ("training", "sft")
        if trains and needs.workers > 1 and room.hold(share, share):
            raise ConfigError(
                f"{needs.workers} workers of {needs.stage} hold {needs.gpus:g} of a GPU each",
                f"two of them would find room in {left:g} of one, and NCCL takes a GPU for each",
                f"set {needs.stage}.gpus_per_worker above {left / 2:g}",
            )


def _check_stage(name: str, device: str, needs: tuple[float, float], has: tuple[int, int]) -> None:
    if device == "cuda" and not has[1]:
        raise ConfigError(
            f"{name}: device 'cuda'",
            "this machine has a CUDA device, or the job runs on a cluster that does",
            "set the device to 'auto' or 'cpu', or give `ray_address`",
        )
    for kind, need, there in zip(("CPUs", "GPUs"), needs, has, strict=True):
        if need > there:
            raise ConfigError(
                f"{name} asks for {need:g} {kind}",
                f"this machine has {there}: the stage would wait forever",
                "lower the number of workers or what each of them holds, or give `ray_address`",
            )


def _check_offload(name: str, section: TrainerConfig) -> None:
    if section.cpu_offload and not uses_cuda_here(section.device):
        raise ConfigError(
            f"{name}.cpu_offload, and the workers run on the CPU",
            "it keeps the parameters of GPU workers in CPU memory; here they are there already",
            "remove it",
        )


def _check_tensor_parallel(config: Config) -> None:
    engines = config.sampling.engines
    heads = model_config_values(config.model).get("num_attention_heads")
    if isinstance(heads, int) and heads % engines.tensor_parallel:
        raise ConfigError(
            f"sampling.engines.tensor_parallel {engines.tensor_parallel}",
            f"it divides the model's {heads} attention heads",
            "choose a divisor",
        )


def _check_memory(config: Config, name: str, section: TrainerConfig, findings: Findings) -> None:
    try:
        parameters = parameter_count(config.model)
        live = live_reference_bytes(config, section)
    except RaydpoError as error:  # it stands among the model's problems already
        findings.note(error)
        return
    worker, together = training_bytes(section, parameters)
    beside = f", {live / _GIB:.2f} GiB of the reference beside the policy" if live else ""
    findings.facts.append(
        f"{name}: {section.strategy}, {section.fewest_workers} worker(s), each with at least "
        f"{worker / _GIB:.2f} GiB of weights, gradients and optimizer states{beside}, and activations"
    )
    if not is_remote(config):
        together += live * section.fewest_workers
        findings.attempt(_check_fits, name, section, worker + live, together)


def _check_fits(name: str, section: TrainerConfig, worker: int, together: int) -> None:
    if uses_cuda_here(section.device) and gpu_count():
        import torch

        needed, there = worker, int(torch.cuda.get_device_properties(0).total_memory)
        where = "a GPU of this machine"
    else:
        needed, there, where = together, memory_bytes(), "this machine"
    if needed > there:
        raise ConfigError(
            f"{name} takes at least {needed / _GIB:.1f} GiB for weights, gradients and optimizer",
            f"{where} has {there / _GIB:.1f} GiB",
            "use strategy 'fsdp' with more workers on more machines, or a smaller model",
        )
