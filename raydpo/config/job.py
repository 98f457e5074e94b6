"""The whole configuration: frozen pydantic models, one file per section, unknown keys refused.

`file.py` reads a YAML file into a `Config`. The sentence below each field describes it. The
module imports neither torch nor Ray.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from raydpo.config.base import (
    Fraction,
    LocalPath,
    Model,
    ModelConfig,
    NonNegativeInt,
    OwnFunction,
    PositiveInt,
    Section,
    SourceFormat,
)
from raydpo.config.content import Placement, Resolved
from raydpo.config.data import Preferences, PreferencesConfig, Prompts, PromptsConfig
from raydpo.config.evaluation import EvaluationConfig
from raydpo.config.inspection import InspectConfig
from raydpo.config.labeling import CombineConfig, LabelingConfig, PeopleConfig, RewardConfig
from raydpo.config.objectives import DpoObjective, single_objectives
from raydpo.config.online import OnlineConfig, ReplayConfig, StoppingConfig
from raydpo.config.pairs import Builder, PairsConfig
from raydpo.config.reference import ReferenceConfig
from raydpo.config.sampling import EnginesConfig, SamplingConfig
from raydpo.config.training import (
    EarlyStoppingConfig,
    LoraSettings,
    SftConfig,
    TrainerConfig,
    TrainingConfig,
)

__all__ = [
    "Builder",
    "CombineConfig",
    "Config",
    "DpoObjective",
    "EarlyStoppingConfig",
    "EnginesConfig",
    "EvaluationConfig",
    "InspectConfig",
    "LabelingConfig",
    "LoraSettings",
    "ModelConfig",
    "OnlineConfig",
    "PairsConfig",
    "PeopleConfig",
    "PreferencesConfig",
    "PromptsConfig",
    "ReferenceConfig",
    "ReplayConfig",
    "RewardConfig",
    "SamplingConfig",
    "SftConfig",
    "SourceFormat",
    "StoppingConfig",
    "TrainerConfig",
    "TrainingConfig",
]


class Config(Section):
    """One job."""

    name: Placement[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run, whose directory is `<output>/<name>`."""
    output: Placement[Annotated[LocalPath, Field(validate_default=True)]] = "runs"
    """Folder or URI that holds the run directories."""
    seed: Resolved[NonNegativeInt] = 0
    """Seed of all random choices."""
    rows_per_part: Resolved[PositiveInt] = 256
    """Number of prompts or groups in one part file, the unit of work and of resuming."""
    stream_stages: Placement[bool] = True
    """Sample, label and score under the reference part by part, without waiting for whole
    tables, if the cluster has room for all of these stages at once."""
    ray_address: Placement[str | None] = None
    """Address of a Ray cluster. Without it raydpo uses RAY_ADDRESS. If neither is set, or the address is `local`, raydpo starts a cluster on this machine."""
    max_quarantined_fraction: Placement[Fraction] = 0.01
    """Maximum share of its input rows that a stage may refuse before it stops."""
    callbacks: Placement[tuple[OwnFunction, ...]] = ()
    """Functions that the driver calls at the ends of steps, stages and rounds, each `package.module:name`."""
    model: Model
    """The model that samples and that training starts from."""
    prompts: Prompts | None = None
    """Prompts that the model answers."""
    sampling: SamplingConfig = SamplingConfig()
    """How raydpo samples candidates."""
    labeling: LabelingConfig | None = None
    """How raydpo turns candidates into preferences."""
    preferences: Preferences | None = None
    """Preference data that already exists and replaces prompts and labelling."""
    inspect: Placement[InspectConfig | None] = None
    """Inspection of the preferences before training, with limits that stop the run."""
    reference: ReferenceConfig = ReferenceConfig()
    """Offline reference log-probabilities."""
    training: TrainingConfig | None = None
    """The policy's training."""
    evaluation: EvaluationConfig | None = None
    """Comparison of policy and reference, and the report."""
    sft: SftConfig | None = None
    """Supervised fine-tuning, for `raydpo sft`."""
    online: OnlineConfig | None = None
    """Online rounds, for `raydpo online`."""

    @model_validator(mode="before")
    @classmethod
    def _heldout_prompts_are_read_like_the_others(cls, values: Any) -> Any:
        evaluation, prompts = values.get("evaluation"), values.get("prompts")
        if not isinstance(evaluation, dict) or not isinstance(prompts, dict):
            return values
        path = evaluation.get("prompts")
        if not isinstance(path, str):
            return values
        own = ("path", "limit", "sources", "filter")
        like = {key: value for key, value in prompts.items() if key not in own}
        return {**values, "evaluation": {**evaluation, "prompts": {**like, "path": path}}}

    @property
    def trains_on_samples(self) -> bool:
        """Whether training reads the rewards and the sampler's log-probs of all sampled completions."""
        return self.training is not None and any(
            one.unit == "samples" for one in single_objectives(self.training.objective)
        )

    @property
    def rewards_evaluated(self) -> tuple[RewardConfig, ...]:
        """The rewards that made the labels, if they score the evaluation's samples, too.

        People cannot be asked again for other samples. An implicit reward is a log-ratio of the
        policy itself, so its value of the policy's own samples is their KL. A pairwise judge
        without a baseline compares samples of one model only.
        """
        if self.evaluation is None or not self.evaluation.training_rewards:
            return ()
        if self.evaluates_reference_alone:  # there is no policy to compare
            return ()
        if self.labeling is None or self.labeling.is_implicit:
            return ()
        if any(reward.is_relative for reward in self.labeling.reward):
            return ()
        return self.labeling.reward

    @property
    def combine_evaluated(self) -> CombineConfig:
        """How the evaluation puts those rewards together: as the labels did, but for z-scores by prompt."""
        return self.labeling.combine.across_models if self.labeling else CombineConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> Config:
        if self.preferences is not None and (self.prompts or self.labeling):
            raise ValueError(
                "`preferences` replaces `prompts` and `labeling`: give one or the other"
            )
        nothing = self.prompts is None and self.preferences is None and self.sft is None
        if nothing and not self.evaluates_reference_alone:
            raise ValueError(
                "there is nothing to work on: give `prompts` (to sample and label), "
                "`preferences` (data that exists already), `sft` or `evaluation.best_of`"
            )
        return self

    @model_validator(mode="after")
    def _best_of_is_chosen_by_rewards(self) -> Config:
        best_of = self.evaluation and self.evaluation.best_of
        if not best_of:
            return self
        if self.labeling is None or not self.labeling.reward or self.labeling.is_implicit:
            raise ValueError(
                "evaluation.best_of chooses by the reward of `labeling`, a function, a classifier "
                "or a service, and there is none. Where pairs exist already or people label, "
                "measure it in a job of its own, without `training`"
            )
        if "policy" in best_of.models and self.training is None:
            raise ValueError(
                "evaluation.best_of.models has `policy`, and without `training` there is none: "
                "take it out"
            )
        if self.online is not None:
            raise ValueError(
                "evaluation.best_of belongs to a single round, and rounds do not measure it: take "
                "it or `online` out"
            )
        return self

    @property
    def evaluates_reference_alone(self) -> bool:
        """Whether the job trains nothing and measures Best-of-N of its reference."""
        best_of = self.evaluation is not None and self.evaluation.best_of is not None
        return best_of and self.training is None

    @model_validator(mode="after")
    def _one_split(self) -> Config:
        own = self.training.heldout_fraction if self.training else None
        if own is not None and self.evaluation and own != self.evaluation.heldout_fraction:
            raise ValueError(
                f"training.heldout_fraction {own:g}, evaluation.heldout_fraction "
                f"{self.evaluation.heldout_fraction:g}: both mean the same groups. With an "
                "`evaluation` section, set the share there and remove training.heldout_fraction"
            )
        sft = self.sft.heldout_fraction if self.sft else None
        trainers = (
            ("training", self.training, self.heldout_fraction),
            ("sft", self.sft, sft),
        )
        for name, trainer, fraction in trainers:
            if trainer is not None and trainer.evaluate_every_steps and not fraction:
                raise ValueError(
                    f"{name}.evaluate_every_steps measures on held-out data, and nothing is held "
                    f"out: set {name}.heldout_fraction, such as 0.1"
                )
        return self

    @property
    def heldout_fraction(self) -> float:
        """Share of the prompts whose preference groups are kept out of training."""
        own = self.training.heldout_fraction if self.training else None
        if own is not None:
            return own
        return self.evaluation.heldout_fraction if self.evaluation else 0.0

    @property
    def reference_model(self) -> ModelConfig:
        """The model pi_ref: the reference's own, or the model that training starts from."""
        return self.reference.model or self.model

    @property
    def uses_reference(self) -> bool:
        """Whether the objective needs the reference's log-probs."""
        return self.training is None or self.training.objective.uses_reference

    @property
    def waits_for_people(self) -> bool:
        """Whether preferences come from votes that people give and a command imports."""
        return self.preferences is None and not (self.labeling and self.labeling.reward)

    @property
    def longest_prompt_tokens(self) -> int:
        """Token limit of prompts to sample for: of `prompts`, or of `sft` in self-play."""
        if self.prompts is not None:
            return self.prompts.max_prompt_tokens
        assert self.sft is not None
        return self.sft.max_sequence_tokens
