"""One round of preference optimization, from prompts to a report.

What comes in: the configuration. What goes out: the run directory, one folder a stage.
Every stage is a function from finished tables to a finished table; one that is finished
already costs nothing, so the same command goes on wherever it was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raydpo.cluster import connected
from raydpo.config import Config, ModelConfig
from raydpo.config_file import config_to_yaml
from raydpo.errors import ConfigError
from raydpo.evaluation.stage import evaluate
from raydpo.labeling.preferences import build_preferences
from raydpo.labeling.stage import score_candidates
from raydpo.parts import Table
from raydpo.progress import logger
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.preferences import run_preferences_stage
from raydpo.prompts.stage import run_prompts_stage
from raydpo.reference.stage import score_reference, verify_reference
from raydpo.run import (
    PartResult,
    Stage,
    commit,
    locked,
    open_stage,
    read_manifest,
    round_folder,
    run_folder,
    write_part,
)
from raydpo.sampling.stage import sample_candidates
from raydpo.split import is_heldout
from raydpo.storage import Folder
from raydpo.training.metrics_log import read_metrics
from raydpo.training.stage import train_policy, train_sft

#: The stages of a round, in order; each can be the last one that a command runs.
STAGES: Final = ("sample", "label", "reference", "train", "evaluate")


@dataclass(frozen=True)
class RoundResult:
    """What a round made: None for what it was not asked for."""

    folder: Folder
    preferences: Table | None = None
    policy: ModelConfig | None = None
    metrics: dict[str, Any] | None = None


def run_round(config: Config, until: str = "evaluate", round_index: int = 0) -> RoundResult:
    """Run a round up to and including the stage `until`.

    Raises:
        RaydpoError: with the value, the rule and the way out.
    """
    _check_sections(config, until)
    run = run_folder(config.output, config.name)
    with locked(run):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config):
            return _Round(config, round_folder(run, round_index), round_index).run(until)


def run_sft(config: Config) -> ModelConfig:
    """Supervised fine-tuning: text in, a model out, in `<run>/sft/`."""
    if config.sft is None:
        raise ConfigError(
            "the configuration has no `sft` section",
            "`raydpo sft` needs one",
            "add `sft: {data: ...}`; jobs/sft_reviews.yaml is an example",
        )
    run = run_folder(config.output, config.name)
    with locked(run):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config):
            folder = run.child("sft")
            examples = run_examples_stage(config, folder.child("examples"))
            return train_sft(
                config=config, folder=folder.child("policy"), examples=examples, what="sft"
            )


@dataclass(frozen=True)
class _Round:
    """The stages of one round, each a few lines: what is read, done, written."""

    config: Config
    folder: Folder
    index: int

    def run(self, until: str) -> RoundResult:
        last = STAGES.index(until)
        if self.config.preferences is not None:
            preferences = self._existing_preferences()
        else:
            candidates = self._sample()
            if last < STAGES.index("label"):
                return RoundResult(self.folder)
            preferences = self._label(candidates)
        if last < STAGES.index("reference"):
            return RoundResult(self.folder, preferences)
        reference = self._reference(preferences)
        if last < STAGES.index("train"):
            return RoundResult(self.folder, preferences)
        policy = self._train(preferences, reference)
        if last < STAGES.index("evaluate") or self.config.evaluation is None:
            return RoundResult(self.folder, preferences, policy)
        return RoundResult(
            self.folder, preferences, policy, self._evaluate(preferences, reference, policy)
        )

    def _existing_preferences(self) -> Table:
        return run_preferences_stage(
            self.config, self.folder.child("preferences"), self._what("preferences")
        )

    def _sample(self) -> Table:
        config = self.config
        assert config.prompts is not None
        prompts = run_prompts_stage(
            config, config.prompts, self.folder.child("prompts"), self._what("prompts")
        )
        return sample_candidates(
            folder=self.folder.child("candidates"),
            prompts=prompts,
            model=config.model,
            sampling=config.sampling,
            seed=config.seed,
            round_index=self.index,
            max_prompt_tokens=config.prompts.max_prompt_tokens,
            what=self._what("sample"),
            max_quarantined_fraction=config.max_quarantined_fraction,
        )

    def _label(self, candidates: Table) -> Table:
        config = self.config
        if config.labeling is None:
            return self._preferences_of_people(candidates)
        scores = score_candidates(
            folder=self.folder.child("scores"),
            candidates=candidates,
            rewards=config.labeling.reward,
            what=self._what("score"),
            max_quarantined_fraction=config.max_quarantined_fraction,
        )
        return build_preferences(
            folder=self.folder.child("preferences"),
            candidates=candidates,
            scores=scores,
            labeling=config.labeling,
            seed=config.seed,
            round_index=self.index,
            what=self._what("label"),
            max_quarantined_fraction=config.max_quarantined_fraction,
        )

    def _preferences_of_people(self, candidates: Table) -> Table:
        """What `raydpo annotate import` built from votes on these very candidates."""
        folder = self.folder.child("preferences")
        manifest = read_manifest(folder)
        if manifest is None or manifest["inputs"].get("candidates") != candidates.fingerprint:
            raise ConfigError(
                f"there is no `labeling` section, and no preferences of people in {folder.uri}",
                "something tells a better completion from a worse one: a reward, or people",
                "add `labeling:`, or `raydpo annotate export RUN`, let people choose, and "
                "`raydpo annotate import RUN FILE`",
            )
        return Table(folder, manifest)

    def _reference(self, preferences: Table) -> Table:
        return score_reference(
            folder=self.folder.child("reference"),
            groups=preferences,
            model=self._reference_model(),
            settings=self.config.reference,
            what=self._what("reference"),
            max_quarantined_fraction=self.config.max_quarantined_fraction,
        )

    def _train(self, preferences: Table, reference: Table) -> ModelConfig:
        folder = self.folder.child("policy")
        if not folder.exists("manifest.json"):
            verify_reference(
                groups=preferences,
                reference=reference,
                model=self._reference_model(),
                settings=self.config.reference,
                seed=self.config.seed,
                what=self._what("reference"),
            )
        return train_policy(
            config=self.config,
            folder=folder,
            preferences=preferences,
            reference=reference,
            what=self._what("train"),
        )

    def _evaluate(
        self, preferences: Table, reference: Table, policy: ModelConfig
    ) -> dict[str, Any]:
        config = self.config
        assert config.evaluation is not None
        folder = self.folder.child("evaluation")
        what = self._what("evaluate")
        prompts = run_prompts_stage(
            config, config.evaluation.prompts, self.folder.child("evaluation-prompts"), what
        )
        return evaluate(
            config=config,
            folder=folder,
            prompts=prompts,
            policy=policy,
            reference_model=self._reference_model(),
            heldout=self._heldout(preferences),
            what=what,
            inputs={"reference": reference.fingerprint},
            training_log=read_metrics(self.folder.child("policy")),
            stage_counts=self._counts(),
        )

    def _heldout(self, preferences: Table) -> Table:
        """The preference groups that training left out."""
        assert self.config.evaluation is not None
        fraction = self.config.evaluation.heldout_fraction
        stage = Stage(
            self.folder.child("heldout"),
            "heldout",
            "preferences",
            {"preferences": preferences.fingerprint},
            {"heldout_fraction": fraction, "seed": self.config.seed},
        )
        manifest = open_stage(stage)
        if manifest is None:
            for index in range(preferences.manifest["parts"]):
                rows = preferences.part(index)
                kept = [r for r in rows if is_heldout(r["prompt_id"], fraction, self.config.seed)]
                write_part(stage, index, PartResult(kept, counts={"input": len(rows)}))
            manifest = commit(stage, {})
        return Table(stage.folder, manifest)

    def _counts(self) -> dict[str, dict[str, int]]:
        """The counts of the stages so far, for the report."""
        counts: dict[str, dict[str, int]] = {}
        for name in ("prompts", "candidates", "scores", "preferences", "reference"):
            folder = self.folder.child(name)
            if folder.exists("manifest.json"):
                counts[name] = folder.read_json("manifest.json")["counts"]
        return counts

    def _reference_model(self) -> ModelConfig:
        return self.config.reference.model or self.config.model

    def _what(self, stage: str) -> str:
        return f"round {self.index}, {stage}"


def _check_sections(config: Config, until: str) -> None:
    """Refuse, before anything starts, what cannot be carried to its end."""
    last = STAGES.index(until)
    if config.preferences is None and config.prompts is None:
        raise _missing("prompts", "a source of prompts, or existing `preferences`")
    if config.preferences is not None and until == "sample":
        raise ConfigError(
            "`preferences` are given, so nothing is sampled",
            "`raydpo sample` needs `prompts`",
            "give `prompts` and `labeling` instead, or start with `raydpo reference`",
        )
    if config.training is None and last >= STAGES.index("train"):
        raise _missing("training", "an objective and its hyperparameters")
    if config.evaluation is None and until == "evaluate":
        logger.info("no `evaluation` section: the run ends with the policy")


def _missing(section: str, what: str) -> ConfigError:
    return ConfigError(
        f"the configuration has no `{section}` section",
        f"this command needs {what}",
        f"add `{section}:`; jobs/ has examples",
    )
