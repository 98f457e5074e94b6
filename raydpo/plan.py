"""Plan what each stage of a job holds on the cluster, and print it before anything starts.

From the configuration and the size of the cluster, the plan logs one line per stage and decides
whether engines can stay alive beside later stages. Ray's resources are logical: workers that wait
for CPUs that live engines hold would wait forever, and say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from raydpo.config.job import Config, RewardConfig, TrainingConfig
from raydpo.core.progress import logger
from raydpo.core.resources import Resources

#: CPUs of a Ray Data worker that no setting speaks of.
_DATA_WORKER_CPUS: Final = 1.0
#: The section that says what engines hold.
ENGINES: Final = "sampling.engines"
#: The section that says what the workers of a sampler function hold.
_SAMPLER: Final = "sampling.function"
#: The section of a training that is a command of its own: rounds never do it.
_SFT: Final = "sft"
#: Beside the engines, the stages that may work at the same time.
_STREAMING: Final = (_SAMPLER, "labeling.reward", "reference")


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
    gpus: float

    def total(self, cuda: bool) -> Resources:
        """Of all workers; `cuda`: whether `auto` means CUDA."""
        uses = self.device == "cuda" or (self.device == "auto" and cuda)
        return Resources(self.workers * self.cpus, self.workers * self.gpus if uses else 0)


def sampler_needs(config: Config) -> StageNeeds:
    """What the engines hold, or the workers of a sampler function."""
    own = config.sampling.function
    if own is not None:
        return StageNeeds(_SAMPLER, "auto", own.workers, own.cpus_per_worker, own.gpus_per_worker)
    engines = config.sampling.engines
    gpus = engines.tensor_parallel * engines.gpu_share
    return StageNeeds(ENGINES, engines.device, engines.count, engines.cpus, gpus)


def stage_needs(config: Config, most: bool = False) -> list[StageNeeds]:
    """What the stages of a job hold, each while it runs, in their order.

    Training that takes a range of workers holds the fewest, or the `most`.
    """
    stages: list[StageNeeds] = []
    if config.prompts or config.evaluation or config.online:
        stages.append(sampler_needs(config))
    if config.labeling is not None and config.labeling.reward:
        stages.append(_scorer_needs("labeling.reward", config.labeling.reward))
    if config.training is not None:
        reference = config.reference
        cpus = reference.cpus_per_worker
        gpus = reference.gpus_per_worker
        stages.append(StageNeeds("reference", "auto", reference.workers, cpus, gpus))
    for name, section in (("training", config.training), (_SFT, config.sft)):
        if section is not None:
            workers = section.most_workers if most else section.fewest_workers
            cpus = section.cpus_per_worker
            gpus = section.gpus_per_worker
            stages.append(StageNeeds(name, section.device, workers, cpus, gpus))
    if config.evaluation is not None:
        stages.append(_scorer_needs("evaluation.judge", config.evaluation.judge))
    return stages


def _of_rounds(stages: list[StageNeeds]) -> list[StageNeeds]:
    return [needs for needs in stages if needs.stage != _SFT]


def _scorer_needs(section: str, rewards: tuple[RewardConfig, ...]) -> StageNeeds:
    workers = max(reward.workers for reward in rewards)
    device = "auto" if any(reward.device == "auto" for reward in rewards) else "cpu"
    gpus = max(reward.gpus_per_worker for reward in rewards)
    return StageNeeds(section, device, workers, _DATA_WORKER_CPUS, gpus)


def largest_beside(
    config: Config, cuda: bool, *staying: str, most: bool = False
) -> tuple[Resources, Resources]:
    """What some stages hold while all others run, and the most that one of the others asks for.

    Args:
        config: the job.
        cuda: whether `auto` means CUDA.
        staying: names of the stages whose engines and workers live through the others.
        most: of a range of train workers, count the most.

    Returns:
        What those that stay hold together; the most CPUs, and the most GPUs, of the others.
    """
    stages = _of_rounds(stage_needs(config, most))
    kept = [needs.total(cuda) for needs in stages if needs.stage in staying]
    others = [needs for needs in stages if needs.stage not in staying]
    others.append(StageNeeds("one Ray Data worker", "cpu", 1, _DATA_WORKER_CPUS, 0))
    asked = [needs.total(cuda) for needs in others]
    return (
        Resources(sum(k.cpus for k in kept), sum(k.gpus for k in kept)),
        Resources(max(a.cpus for a in asked), max(a.gpus for a in asked)),
    )


def what_heldout_groups_are_for(training: TrainingConfig) -> str:
    """Describe what online rounds do with the groups that they keep out of training."""
    if training.evaluates_heldout:
        return "the training is measured on them"
    return "rounds measure nothing on them (evaluation.heldout_fraction)"


def announce(config: Config, cluster: Resources) -> None:
    """Log what each stage will hold, and which of them ask for more than there is."""
    cuda = cluster.gpus > 0
    for needs in _of_rounds(stage_needs(config)):
        total = needs.total(cuda)
        text = f"[plan] {needs.stage}: {needs.workers} worker(s) hold {total}"
        if cluster.hold(total):
            logger.info("%s", text)
        else:
            logger.warning("%s: more than the cluster has (%s), until it grows", text, cluster)
    engines = config.sampling.function is None
    if config.online is not None and config.online.keep_engines and engines:
        kept, asked = largest_beside(config, cuda, ENGINES)
        if not cluster.hold(kept, asked):
            text = "[plan] engines live through all rounds and keep %s, another stage asks for %s: "
            logger.warning(
                text + "more than the cluster has (%s), until it grows", kept, asked, cluster
            )
    training = config.training
    if config.online is not None and config.heldout_fraction and training:
        text = "[plan] %.0f%% of each round's groups are left out of its training, and %s"
        logger.info(text, 100 * config.heldout_fraction, what_heldout_groups_are_for(training))
    if config.training is not None:
        early = "with the round, and wait for its data"
        late = "when their data are there: the other stages need what they hold"
        when = early if workers_can_wait(config, cluster) else late
        logger.info("[plan] train workers start %s", when)
    labeling = config.labeling
    if config.prompts is not None and labeling and labeling.reward and config.stream_stages:
        together = "work at the same time, part by part"
        apart = "work one after the other: there is no room for all at once"
        how = together if stages_can_stream(config, cluster) else apart
        inspects = config.inspect is not None  # before the reference begins
        who = "sampling and labelling" if inspects else "sampling, labelling and reference"
        logger.info("[plan] %s %s", who, how)
    if config.rewards_evaluated:
        text = "[plan] labeling.reward holds the same again in the evaluation, after the judge"
        logger.info("%s (evaluation.training_rewards)", text)


def stages_can_stream(config: Config, cluster: Resources) -> bool:
    """Whether sampling, labelling and the reference find their places at the same time.

    Workers on GPUs keep theirs throughout; those on CPUs only may take turns. Engines that are
    to sleep on GPUs while others work cannot stream into them.
    """
    cuda = cluster.gpus > 0
    if not engines_can_stay(config, cluster) or (cuda and config.sampling.engines.sleep):
        return False
    waiting = {"training"} if workers_can_wait(config, cluster) else set[str]()
    keeping: list[Resources] = []
    taking_turns: list[float] = [_DATA_WORKER_CPUS]
    for needs in stage_needs(config, most=True):
        total = needs.total(cuda)
        if (
            needs.stage == ENGINES
            or needs.stage in waiting
            or (needs.stage in _STREAMING and total.gpus)
        ):
            keeping.append(total)
        elif needs.stage in _STREAMING:
            taking_turns.append(needs.cpus)
    return cluster.hold(*keeping, Resources(max(taking_turns), 0))


def engines_can_stay(config: Config, cluster: Resources) -> bool:
    """Whether every other stage finds its place while the engines hold theirs."""
    return cluster.hold(*largest_beside(config, cluster.gpus > 0, ENGINES, most=True))


def workers_can_wait(config: Config, cluster: Resources) -> bool:
    """Whether every other stage finds its place while engines and train workers hold theirs."""
    return cluster.hold(*largest_beside(config, cluster.gpus > 0, ENGINES, "training", most=True))
