"""What each stage of a job holds of the cluster: said before anything starts.

What comes in: the configuration, and how large the cluster is. What goes out: a line a
stage in the log, and whether engines can stay alive beside the stages after them. Ray's
resources are logical: workers that wait for CPUs that living engines hold wait for ever,
and say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from raydpo.config import Config, RewardConfig
from raydpo.progress import logger

#: CPUs of a Ray Data worker that no setting speaks of.
_DATA_WORKER_CPUS: Final = 1.0
#: Shares of CPUs are sums of fractions.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Resources:
    """Ray CPUs and GPUs."""

    cpus: float
    gpus: float

    def hold(self, *others: Resources) -> bool:
        """Whether the others fit in together."""
        cpus, gpus = sum(o.cpus for o in others), sum(o.gpus for o in others)
        return cpus <= self.cpus + _ROUNDING and gpus <= self.gpus

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True)
class StageNeeds:
    """What a stage holds while it runs.

    Attributes:
        stage: section of the configuration.
        device: its `device` setting.
        workers: how many work at once.
        cpus: Ray CPUs of each.
        gpus: GPUs of each, where they use CUDA.
    """

    stage: str
    device: str
    workers: int
    cpus: float
    gpus: int

    def total(self, cuda: bool) -> Resources:
        """Of all workers; `cuda`: whether `auto` means CUDA."""
        uses = self.device == "cuda" or (self.device == "auto" and cuda)
        return Resources(self.workers * self.cpus, self.workers * self.gpus if uses else 0)


def engine_needs(config: Config) -> StageNeeds:
    """What the engines hold."""
    engines = config.sampling.engines
    return StageNeeds(
        "sampling.engines", engines.device, engines.count, engines.cpus, engines.tensor_parallel
    )


def stage_needs(config: Config, most: bool = False) -> list[StageNeeds]:
    """What the stages of a job hold, each while it runs, in their order.

    Training that takes a range of workers holds the fewest, or the `most`.
    """
    stages: list[StageNeeds] = []
    if config.prompts is not None or config.evaluation is not None:
        stages.append(engine_needs(config))
    if config.labeling is not None:
        stages.append(_scorer_needs("labeling.reward", config.labeling.reward))
    if config.training is not None:
        reference = config.reference
        cpus = reference.cpus_per_worker
        stages.append(StageNeeds("reference", "auto", reference.workers, cpus, 1))
    for name, section in (("training", config.training), ("sft", config.sft)):
        if section is not None:
            workers = section.most_workers if most else section.fewest_workers
            cpus = section.cpus_per_worker
            stages.append(StageNeeds(name, section.device, workers, cpus, 1))
    if config.evaluation is not None:
        stages.append(_scorer_needs("evaluation.judge", config.evaluation.judge))
    return stages


def _scorer_needs(section: str, rewards: tuple[RewardConfig, ...]) -> StageNeeds:
    workers = max(reward.workers for reward in rewards)
    device = "auto" if any(reward.classifier for reward in rewards) else "cpu"
    return StageNeeds(section, device, workers, _DATA_WORKER_CPUS, 1)


def largest_beside_engines(config: Config, cuda: bool, most: bool = False) -> Resources:
    """The most CPUs, and the most GPUs, that a stage holds while the engines live."""
    stages = [needs for needs in stage_needs(config, most) if needs.stage != "sampling.engines"]
    stages.append(StageNeeds("one Ray Data worker", "cpu", 1, _DATA_WORKER_CPUS, 0))
    totals = [needs.total(cuda) for needs in stages]
    return Resources(max(t.cpus for t in totals), max(t.gpus for t in totals))


def announce(config: Config, cluster: Resources) -> None:
    """Log what each stage will hold, and which of them ask for more than there is."""
    cuda = cluster.gpus > 0
    for needs in stage_needs(config):
        total = needs.total(cuda)
        text = f"[plan] {needs.stage}: {needs.workers} worker(s) hold {total}"
        if cluster.hold(total):
            logger.info("%s", text)
        else:
            logger.warning("%s: more than the cluster has (%s), until it grows", text, cluster)


def engines_can_stay(config: Config, cluster: Resources) -> bool:
    """Whether every other stage finds its place while the engines hold theirs."""
    cuda = cluster.gpus > 0
    engines = engine_needs(config).total(cuda)
    return cluster.hold(engines, largest_beside_engines(config, cuda, most=True))
