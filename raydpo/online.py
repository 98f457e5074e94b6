"""Online rounds: sample from the newest policy, label, train, and push it into the engines.

What comes in: the configuration with its `online` section. What goes out: a folder a
round, each made of the stages of `round.py`, and `online.json` with the policies' held-out
rewards. Every choice is a function of the seed and the round, and every stage knows what
it depends on: the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

from raydpo.cluster import cluster_size, connected
from raydpo.config import Config, ModelConfig, OnlineConfig, PromptsConfig
from raydpo.config_file import config_to_yaml
from raydpo.evaluation.rounds import PolicyMeasures, measure_policy, reward_difference
from raydpo.fit import check_counts_fit
from raydpo.labeling.replay import mixes, training_groups
from raydpo.lock import locked
from raydpo.models import local_folder, weights_fingerprint
from raydpo.online_record import (
    STREAMED,
    Ledger,
    RoundRecord,
    best_record,
    describe_record,
    describe_seconds,
    displacement,
    refuse_spent_budget,
    stop_reason,
)
from raydpo.online_summary import publish
from raydpo.parts import Table
from raydpo.plan import announce
from raydpo.progress import logger
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.self_play import example_prompts
from raydpo.prompts.stage import run_prompts_stage
from raydpo.prompts.stream import round_prompts
from raydpo.reference.average import averaged_reference
from raydpo.round import Round, longest_prompt
from raydpo.run import round_folder, run_folder
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.probe import probe_engines, probes_of
from raydpo.sampling.weights import weights_of
from raydpo.storage import Folder, folder_of
from raydpo.training.metrics_log import read_metrics
from raydpo.training.probe import PROBE_FILE
from raydpo.training.stage import early_workers
from raydpo.training.workers import EarlyWorkers

#: What a round came to, in its folder.
ROUND_FILE: Final = "round.json"


@dataclass(frozen=True)
class OnlineResult:
    """What the rounds came to.

    Attributes:
        folder: the run directory.
        records: one for the original model and one a round.
        stopped: why the rounds ended early, or None.
        best: the record of the policy with the highest held-out reward.
        engine_starts: how often this process started the engines.
    """

    folder: Folder
    records: list[RoundRecord]
    stopped: str | None
    best: RoundRecord
    engine_starts: int


def run_online(config: Config) -> OnlineResult:
    """Run the rounds that are missing, until all are there or one says to stop.

    The job has been checked (`check_online.py`): it has all sections that rounds need.

    Raises:
        ConfigError: the model is further from the reference than the KL budget allows.
        RaydpoError: with the value, the rule and the way out.
    """
    assert config.online is not None
    run = run_folder(config.output, config.name)
    with locked(run):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        with connected(config), _engines(config) as engines, ExitStack() as ends:
            announce(config, cluster_size())
            return _Rounds(config, config.online, run, engines, ends).run()


def _engines(config: Config) -> Engines:
    """Engines for all rounds, with room for the longest prompt of training and evaluation."""
    longest = longest_prompt(config)
    if config.evaluation is not None:
        longest = max(longest, config.evaluation.prompts.max_prompt_tokens)
    return Engines(config.model, config.sampling, longest, "rounds")


@dataclass
class _State:
    """What the next round needs to know of those before.

    Attributes:
        policies: the original model and one a round.
        examples: the data that self-play prefers; None where labels decide.
        references: pi_ref of each round so far.
        preferences: of each round so far.
        measures: held-out samples, as many as policies, or none at all.
        records: as many as policies.
        workers: those that wait for the next training's data, where there are any.
    """

    policies: list[ModelConfig]
    examples: Table | None
    references: list[ModelConfig] = field(default_factory=list[ModelConfig])
    preferences: dict[int, Table] = field(default_factory=dict[int, Table])
    measures: list[PolicyMeasures] = field(default_factory=list[PolicyMeasures])
    records: list[RoundRecord] = field(default_factory=list[RoundRecord])
    workers: EarlyWorkers | None = None


@dataclass(frozen=True)
class _Rounds:
    """The rounds of one run; `ends` lets go of train workers that wait in vain."""

    config: Config
    online: OnlineConfig
    run_directory: Folder
    engines: Engines
    ends: ExitStack

    def run(self) -> OnlineResult:
        """All rounds, from the original model on."""
        state = _State([self.config.model], self._examples())
        prompts = self._prompts(state)
        state.workers = self._early_workers(0)
        state.records.append(self._original(state))
        refuse_spent_budget(state.records[0], self.online.stopping)
        stopped = None
        for index in range(self.online.rounds):
            state.workers = state.workers or self._early_workers(index)
            with ThreadPoolExecutor(1) as beside:
                self._round(index, prompts, state, beside)
            stopped = stop_reason(state.records, self.online.stopping)
            if stopped is not None:
                logger.info("[round %d] the rounds end here: %s", index, stopped)
                break
        best = best_record(state.records, self.online.stopping)
        publish(self.config, self.run_directory, state.records, stopped, best)
        return OnlineResult(self.run_directory, state.records, stopped, best, self.engines.starts)

    def _original(self, state: _State) -> RoundRecord:
        model = self.config.model
        evaluation = self._evaluate(self.run_directory.child("original"), model, state, Ledger())
        record = RoundRecord(0, model.path, weights_fingerprint(model), evaluation=evaluation)
        logger.info("[original model] %s", describe_record(record))
        return record

    def _early_workers(self, index: int) -> EarlyWorkers | None:
        """Train workers of a round that start now, where there is room for them beside the rest."""
        if index >= self.online.rounds:
            return None
        folder = round_folder(self.run_directory, index).child("policy")
        return self.ends.enter_context(early_workers(self.config, folder, f"round {index}, train"))

    def _round(self, index: int, prompts: Table, state: _State, beside: ThreadPoolExecutor) -> None:
        ledger, folder = Ledger(), round_folder(self.run_directory, index)
        stages = replace(self._stages(index, folder, state), workers=state.workers)
        self._work_ahead(stages, prompts, state, ledger)
        candidates = self._sample(index, prompts, state, ledger)
        groups = self._label(stages, candidates, state, ledger)
        reference = self._score(stages, groups, candidates, ledger)
        if self.online.lookahead and index + 1 < self.online.rounds:
            # A ledger of its own: what is done beside training takes no time from this round.
            next_sample = beside.submit(self._sample, index + 1, prompts, state, Ledger())
        else:
            next_sample = None
        trained = self._train(stages, groups, reference, ledger)
        # A round that was done before may have been the last one.
        state.workers = None if folder.exists(ROUND_FILE) else self._early_workers(index + 1)
        if next_sample is not None:
            with ledger.of("waiting for the next sample"):
                next_sample.result()
        evaluation = self._evaluate(folder.child("evaluation"), trained, state, ledger)
        record = RoundRecord(
            rounds_done=index + 1,
            policy=trained.path,
            policy_weights=weights_fingerprint(trained),
            sampler_weights=weights_fingerprint(state.policies[self.online.sampler_of(index)]),
            reference_weights=weights_fingerprint(state.references[index]) if reference else None,
            samples=candidates.manifest["counts"]["output"],
            groups=groups.manifest["counts"]["output"],
            replayed=groups.manifest["counts"].get("replayed", 0),
            displacement_nats=displacement(read_metrics(folder.child("policy"))),
            evaluation=evaluation,
        )
        state.policies.append(trained)
        state.records.append(record)
        _write_round(folder, index, record, ledger)

    def _stages(self, index: int, folder: Folder, state: _State) -> Round:
        """The round's stages after sampling: its policy is the newest, its reference as configured."""
        policy = state.policies[index]
        reference = self._reference(index, folder, state)
        state.references.append(reference)
        config = self.config.model_copy(
            update={
                "model": policy,
                "reference": self.config.reference.model_copy(update={"model": reference}),
            }
        )
        return Round(config, folder, index)

    def _reference(self, index: int, folder: Folder, state: _State) -> ModelConfig:
        """pi_ref of a round: the one before, or the newest policy, or an average of both."""
        if index == 0:
            return self._original_reference()
        if not self.online.updates_reference(index):
            return state.references[-1]
        alpha = self.online.reference_update_alpha
        if alpha == 1:
            return state.policies[-1]
        return averaged_reference(
            folder=folder.child("reference-model"),
            policy=state.policies[-1],
            reference=state.references[-1],
            alpha=alpha,
            what=f"round {index}, reference",
        )

    def _sample(self, index: int, prompts: Table, state: _State, ledger: Ledger) -> Table:
        """Candidates of a round, from the newest policy or, with lookahead, the one before."""
        with ledger.of("sampling"):
            candidates = self._sampler(index, state, ledger).sample(self._chosen(index, prompts))
            self._sampled()
            return candidates

    def _sampled(self) -> None:
        """Engines that are not kept end where others need what they hold: after all sampling."""
        if not self.online.keep_engines:
            self.engines.close()

    def _sampler(self, index: int, state: _State, ledger: Ledger) -> Round:
        """The round as it samples."""
        policy = state.policies[self.online.sampler_of(index)]
        config = self.config.model_copy(update={"model": policy})
        pool = functools.partial(self._pool, policy, ledger)
        return Round(config, round_folder(self.run_directory, index), index, pool)

    def _chosen(self, index: int, prompts: Table) -> Table:
        """The prompts of a round."""
        return round_prompts(
            folder=round_folder(self.run_directory, index).child("prompts"),
            prompts=prompts,
            online=self.online,
            seed=self.config.seed,
            round_index=index,
            rows_per_part=self.config.rows_per_part,
        )

    def _work_ahead(self, stages: Round, prompts: Table, state: _State, ledger: Ledger) -> None:
        """Sample, label and score part by part; the reference only where the round's own groups
        are all that it trains on.
        """
        if self.online.pairs != "labels":
            return
        index = stages.index
        own = not mixes(state.preferences, self.online, index)
        with ledger.of(STREAMED):
            sampler, chosen = self._sampler(index, state, ledger), self._chosen(index, prompts)
            stages.work_ahead(chosen, sampler, to_reference=own)
            self._sampled()

    def _label(self, stages: Round, candidates: Table, state: _State, ledger: Ledger) -> Table:
        with ledger.of("labelling"):
            data = state.examples
            own = stages.self_play(candidates, data) if data else stages.label(candidates)
            earlier = dict(state.preferences)
            state.preferences[stages.index] = own
            groups = training_groups(
                folder=stages.folder.child("training-groups"),
                own=own,
                earlier=earlier,
                online=self.online,
                seed=self.config.seed,
                round_index=stages.index,
                what=f"round {stages.index}, label",
            )
            check_counts_fit(self.config, groups.manifest["counts"])
            return groups

    def _score(
        self, stages: Round, groups: Table, candidates: Table, ledger: Ledger
    ) -> Table | None:
        with ledger.of("scoring"):
            reference = stages.reference(groups, candidates)
            if stages.index == 0:  # later samplers are held against the trainer's probe at a push
                stages.check_sampler(candidates, reference)
            stages.verify(groups, reference)
            return reference

    def _train(
        self, stages: Round, groups: Table, reference: Table | None, ledger: Ledger
    ) -> ModelConfig:
        """Train; the steps and the start-up around them are told apart."""
        if self.config.sampling.engines.weight_transfer == "broadcast" and self.engines.running:
            stages = replace(stages, publish=Broadcast(self.engines.pool()))
        folder = stages.folder.child("policy")
        before = read_metrics(folder)  # steps of a run that was stopped took no time from this one
        with ledger.of("training start-up"):
            trained = stages.train(groups, reference)
        steps = [row["step_seconds"] for row in read_metrics(folder) if row not in before]
        ledger.move(sum(steps), "training start-up", "training")
        return trained

    def _evaluate(
        self, folder: Folder, policy: ModelConfig, state: _State, ledger: Ledger
    ) -> dict[str, Any] | None:
        """Held-out numbers of a policy, and its gain over the one before."""
        if self.config.evaluation is None:
            return None
        with ledger.of("evaluation"):
            measures = measure_policy(
                config=self.config,
                folder=folder,
                prompts=self._read_prompts("heldout", self.config.evaluation.prompts),
                policy=policy,
                original=self._original_reference(),
                pool=functools.partial(self._pool, policy, ledger),
                sampled=self._sampled,
                what=f"{len(state.measures)} round(s) done, evaluate",
            )
            before = state.measures[-1] if state.measures else None
            state.measures.append(measures)
            gain = reward_difference(measures, before) if before else None
            return {**measures.values, "gain": gain}

    def _pool(self, model: ModelConfig, ledger: Ledger) -> EnginePool:
        """The engines with a model's weights; start, push and probe have lines in the ledger."""
        with ledger.of("engine start"):
            pool = self.engines.pool()
        weights = weights_of(model)
        with ledger.of("weight push"):
            pool.push(weights, "rounds")
        folder = folder_of(model.path)
        if model != self.config.model and folder.exists(PROBE_FILE):
            rows = json.loads((local_folder(model) / PROBE_FILE).read_bytes())  # held to its hash
            with ledger.of("probe"):
                probe_engines(pool, weights, probes_of(rows), "rounds")
        return pool

    def _examples(self) -> Table | None:
        """The data that self-play prefers, where it is asked for."""
        if self.online.pairs == "labels":
            return None
        return run_examples_stage(self.config, self.run_directory.child("examples"))

    def _prompts(self, state: _State) -> Table:
        """All prompts of the run: the job's own, or those of the examples."""
        if state.examples is None:
            return self._read_prompts("prompts", self.config.prompts)
        folder = self.run_directory.child("prompts")
        return example_prompts(self.config, folder, state.examples)

    def _read_prompts(self, name: str, source: PromptsConfig | None) -> Table:
        assert source is not None
        return run_prompts_stage(self.config, source, self.run_directory.child(name), name)

    def _original_reference(self) -> ModelConfig:
        return self.config.reference.model or self.config.model


def _write_round(folder: Folder, index: int, record: RoundRecord, ledger: Ledger) -> None:
    """Say what the round came to; where it was finished before, its first ledger stays."""
    logger.info("[round %d] %s", index, describe_record(record))
    values = record.as_json()
    if folder.exists(ROUND_FILE):
        found = folder.read_json(ROUND_FILE)
        if {**found, "seconds": None} == {**values, "seconds": None}:
            return
    seconds = ledger.close()
    logger.info("[round %d] %s", index, describe_seconds(seconds))
    folder.write_json(ROUND_FILE, {**values, "seconds": seconds})
