"""Check the settings of online rounds, for `raydpo check` and `raydpo online`; see `job.py`.

Facts and problems go to `Findings`, among them whether engines that stay alive leave room for the
train workers.
"""

from __future__ import annotations

import os

from raydpo.check.findings import Findings
from raydpo.check.machine import gpu_count, is_remote
from raydpo.config.job import Config, EnginesConfig, ModelConfig, OnlineConfig, TrainingConfig
from raydpo.config.objectives import Objective
from raydpo.core.errors import ConfigError
from raydpo.core.resources import Resources
from raydpo.evaluation.caveats import sampling_caveats
from raydpo.models.loading import adapter_base
from raydpo.plan import largest_beside, what_heldout_groups_are_for


def check_online(config: Config, findings: Findings) -> None:
    """Note problems with online rounds."""
    if config.online is None:
        return
    findings.attempt(check_sections_of_rounds, config)
    if config.heldout_fraction > 0 and config.training is not None:
        findings.facts.append(
            f"note: {config.heldout_fraction:.0%} of the preference groups are kept out of "
            f"training, and {what_heldout_groups_are_for(config.training)}"
        )
    _note_cut_samples(config, findings)
    models = {"model": config.model, "reference.model": config.reference.model}
    findings.attempt(_check_average, config.online, models)
    engines = config.sampling.function is None and config.online.keep_engines
    if engines and config.training is not None and not is_remote(config):
        findings.attempt(_check_room, config, findings)


def _note_cut_samples(config: Config, findings: Findings) -> None:
    """Report a KL budget that applies to a mean log-ratio which is no estimate of KL."""
    if config.online is None or config.evaluation is None:
        return
    cuts = sampling_caveats(config.evaluation, config.sampling)
    if cuts and config.online.stopping.max_kl_nats is not None:
        findings.facts.append(
            f"note: held-out samples are drawn with {', '.join(cuts)}: the mean log-ratio that "
            "online.stopping.max_kl_nats is compared with is no estimate of KL"
        )


def check_sections_of_rounds(config: Config) -> OnlineConfig:
    """The `online` section of a job that has all sections that rounds need.

    Raises:
        ConfigError: a section is missing.
    """
    needed = ["online", "training"]
    self_play = config.online is not None and config.online.pairs == "self_play"
    needed += ["sft"] if self_play else ["prompts", "labeling"]
    missing = [f"`{name}`" for name in needed if getattr(config, name) is None]
    if missing or config.online is None:
        raise ConfigError(
            f"the configuration has no {' and no '.join(missing)} section",
            "rounds sample for prompts, label by rewards (or prefer the data of `sft`: "
            "online.pairs), and train, again and again",
            "add what is missing; jobs/online_dpo.yaml is an example",
        )
    if config.labeling is not None and config.labeling.people is not None:
        raise ConfigError(
            "`labeling` has `people`",
            "rounds label by rewards: each of them would wait for people",
            "give `labeling` a reward; with people run one round after the other, as runs of "
            "their own whose `model` is the policy of the one before",
        )
    if self_play:
        _check_self_play(config)
    elif config.labeling is not None and config.labeling.is_implicit:
        _check_implicit(config.online)
    if config.online.lookahead and config.sampling.engines.sleep:
        raise ConfigError(
            "online.lookahead is 1, and sampling.engines.sleep is true",
            "the next round samples while this one trains: its engines are awake",
            "take one of them out",
        )
    if config.sampling.engines.weight_transfer == "broadcast":
        _check_broadcast(config.online, config.sampling.engines, config.training)
    if config.training is not None:
        _check_reference(config.online, config.training.objective)
    _check_displacement(config, config.online)
    limits = config.online.stopping.model_dump(exclude={"max_displacement_nats"}, exclude_none=True)
    if limits and config.evaluation is None:
        raise ConfigError(
            f"online.stopping sets {', '.join(limits)}, and there is no `evaluation` section",
            "after each round these limits are compared with samples for held-out prompts",
            "add `evaluation:`, or take the limits out",
        )
    return config.online


def _check_reference(online: OnlineConfig, objective: Objective) -> None:
    if online.reference != "original" and not objective.uses_reference:
        raise ConfigError(
            f"online.reference is {online.reference!r}, and the objective is {objective.name}",
            "this objective has no reference that could follow the policy",
            "leave online.reference out",
        )


def _check_displacement(config: Config, online: OnlineConfig) -> None:
    if config.trains_on_samples and online.stopping.max_displacement_nats is not None:
        raise ConfigError(
            f"online.stopping.max_displacement_nats {online.stopping.max_displacement_nats:g} with "
            "objective 'policy_gradient'",
            "displacement is the fall of the chosen completions' log-probs, and a policy gradient "
            "has no chosen completions",
            "take it out; online.stopping.max_kl_nats limits how far the policy goes",
        )


def _check_self_play(config: Config) -> None:
    assert config.sft is not None
    assert config.online is not None
    if config.online.min_spread_quantile:
        raise ConfigError(
            f"online.min_spread_quantile {config.online.min_spread_quantile:g} with online.pairs "
            "'self_play'",
            "a curriculum by reward spread needs rewards, and self-play asks for none",
            "leave online.min_spread_quantile out",
        )
    if config.sft.loss_on == "all":
        raise ConfigError(
            "online.pairs is 'self_play', and sft.loss_on is 'all'",
            "self-play needs prompts and completions: what is chosen is a completion of the data",
            "give data with prompts, and set sft.loss_on to 'completion'",
        )
    for name in ("prompts", "labeling"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"online.pairs is 'self_play', and there is a `{name}` section",
                "prompts and chosen completions are those of the `sft` section's data",
                f"take `{name}` out, or set online.pairs to 'labels'",
            )


def _check_broadcast(
    online: OnlineConfig, engines: EnginesConfig, training: TrainingConfig | None
) -> None:
    busy = {
        "sampling.engines.sleep is true": engines.sleep,
        "online.lookahead is 1": online.lookahead == 1,
        "online.keep_engines is false": not online.keep_engines,
    }
    for what in (name for name, holds in busy.items() if holds):
        raise ConfigError(
            f"sampling.engines.weight_transfer is 'broadcast', and {what}",
            "the train worker sends to engines that are there, awake, and have nothing else to do",
            "take one of them out",
        )
    if training is not None and training.device != engines.device:
        raise ConfigError(
            f"sampling.engines.device is {engines.device!r}, and training.device {training.device!r}",
            "weights are broadcast between CPUs (gloo) or between GPUs (NCCL)",
            "set both alike, or set sampling.engines.weight_transfer to 'files'",
        )


def _check_implicit(online: OnlineConfig) -> None:
    if online.reference != "original" and online.reference_update_alpha == 1:
        raise ConfigError(
            "labeling.reward is `implicit`, and online.reference is the policy before "
            f"({online.reference!r}, with weight 1)",
            "policy and reference would be the same model, and every implicit reward 0",
            "take online.reference 'original', or 'ema' with an online.ema_alpha below 1",
        )


def _check_room(config: Config, findings: Findings) -> None:
    """Check that stages fit beside engines, which hold their share through all rounds."""
    there = Resources(float(os.cpu_count() or 1), float(gpu_count()))
    engines, asked = largest_beside(config, there.gpus > 0, "sampling.engines")
    text = f"engines that stay alive keep {engines}, the largest stage beside them asks for {asked}"
    findings.facts.append(f"rounds: {text}, of {there}")
    if not there.hold(engines, asked):
        raise ConfigError(
            text,
            f"this machine has {there}: a stage would wait forever",
            "lower sampling.engines.cpus (Ray's CPUs are only counted: 0.1 takes no thread away) "
            "or training.cpus_per_worker; on too few GPUs set sampling.engines.sleep, or "
            "online.keep_engines=false",
        )


def _check_average(online: OnlineConfig, models: dict[str, ModelConfig | None]) -> None:
    """An average is taken tensor by tensor: an adapter has none of the policy's."""
    for name, model in models.items():
        if online.reference == "ema" and model is not None and adapter_base(model) is not None:
            raise ConfigError(
                f"online.reference is 'ema', and {name} {model.path!r} is a LoRA adapter",
                "the average of policy and reference is taken over the tensors of whole models",
                f"merge the adapter into its base and set {name} to that folder, or take "
                "online.reference 'original' or 'previous'; policies that `training.lora` makes "
                "are merged already",
            )
