"""Run online rounds: sample from the newest policy, label, train, and update the engines.

The `online` section configures them. Each round has a folder made by the stages of `round.py`, and
`online.json` has the policies' held-out rewards. Every choice depends only on the seed and the
round, and every stage knows its inputs. So the same command resumes wherever it stopped.
"""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

from raydpo.config.file import config_to_yaml
from raydpo.config.fit import check_counts_fit
from raydpo.config.job import Config, ModelConfig, OnlineConfig, PromptsConfig
from raydpo.core.callbacks import callbacks_of, notify
from raydpo.core.cluster import cluster_size, connected
from raydpo.core.lock import locked
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import round_folder, run_folder
from raydpo.core.storage import Folder, folder_of
from raydpo.core.walk import Making
from raydpo.models.loading import local_folder, weights_fingerprint
from raydpo.online.average import REFERENCE_FOLDER, averaged_reference
from raydpo.online.measure import PolicyMeasures, measure_policy, reward_difference
from raydpo.online.prompts import example_prompts, round_prompts
from raydpo.online.record import (
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
from raydpo.online.replay import mixes, training_groups
from raydpo.online.summary import publish
from raydpo.pipeline.order import (
    inspect_before_training,
    label_by_rewards,
    score_by_reference,
)
from raydpo.pipeline.replan import may_start_engines, replanning
from raydpo.pipeline.round import Round, place_in
from raydpo.plan import announce
from raydpo.prompts.examples import run_examples_stage
from raydpo.prompts.stage import run_prompts_stage
from raydpo.sampling.broadcast import Broadcast
from raydpo.sampling.pool import EnginePool, Engines
from raydpo.sampling.probe import probe_engines, probes_of
from raydpo.sampling.weights import weights_of
from raydpo.training.metrics_log import read_metrics
from raydpo.training.probe import PROBE_FILE
from raydpo.training.stage import early_workers
from raydpo.training.workers import EarlyWorkers

#: File in a round's folder with the round's result.
ROUND_FILE: Final = "round.json"
_MAKING: Final = Making()


@dataclass(frozen=True)
class OnlineResult:
    """The result of all rounds.

    Attributes:
        folder: the run directory.
        records: one for the original model and one for each round.
        stopped: why the rounds ended early, or None.
        best: the record of the policy with the highest held-out reward.
        engine_starts: how many times this process started the engines.
        verdict: what the rounds were worth, in a line.
    """

    folder: Folder
    records: list[RoundRecord]
    stopped: str | None
    best: RoundRecord
    engine_starts: int
    verdict: str


def run_online(config: Config, engines: Engines | None = None) -> OnlineResult:
    """Run the missing rounds until all are done or one triggers a stop.

    The job has been checked (`check/online.py`), so it has all sections that rounds need.

    Args:
        config: the job.
        engines: those of a caller with several runs of one architecture and one `sampling`, which
            live on; without them the run starts its own.

    Raises:
        ConfigError: the model is further from the reference than the KL budget allows.
        RaydpoError: with the value, the rule and the way out.
    """
    assert config.online is not None
    run = run_folder(config.output, config.name)
    with locked(run), callbacks_of(run, config.callbacks):
        run.write_bytes("config.yaml", config_to_yaml(config).encode())
        own = nullcontext(engines) if engines is not None else _engines(config)
        with connected(config.ray_address), own as pool, ExitStack() as ends:
            announce(config, cluster_size())
            rounds = _Rounds(config, config.online, run, pool, ends)
            state = _State([config.model], rounds.examples())
            with replanning(config, pool, lambda: state.workers):
                return rounds.run(state)


def _engines(config: Config) -> Engines:
    """Build engines for all rounds, with room for the longest prompt of training and evaluation."""
    longest = config.longest_prompt_tokens
    if config.evaluation is not None:
        longest = max(longest, config.evaluation.prompts.max_prompt_tokens)
    may_start = may_start_engines(config)
    return Engines(config.model, config.sampling, longest, "rounds", may_start)


@dataclass
class _State:
    """The facts about earlier rounds that the next round needs.

    Attributes:
        policies: the original model and one policy for each round.
        examples: the data that self-play prefers; None if labels decide.
        references: the pi_ref of each round so far.
        preferences: the preferences of each round so far.
        measures: held-out samples, one entry per policy, or none at all.
        records: one entry per policy.
        workers: the workers that wait for the next training's data, if any.
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
    """The rounds of one run; `ends` releases train workers that wait in vain."""

    config: Config
    online: OnlineConfig
    run_directory: Folder
    engines: Engines
    ends: ExitStack

    def run(self, state: _State) -> OnlineResult:
        """Run all rounds from the original model on."""
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
        of = self.run_directory, state.records
        verdict = publish(self.config, *of, state.measures, stopped, best)
        return OnlineResult(*of, stopped, best, self.engines.starts, verdict.line)

    def _original(self, state: _State) -> RoundRecord:
        model = self.config.model
        evaluation = self._evaluate(self._place("original"), model, state, Ledger())
        record = RoundRecord(0, model.path, weights_fingerprint(model), evaluation=evaluation)
        logger.info("[original model] %s", describe_record(record))
        return record

    def _early_workers(self, index: int) -> EarlyWorkers | None:
        """Start train workers of a round now if there is room for them beside the rest."""
        if index >= self.online.rounds:
            return None
        place = self._in_round(index).place("policy")
        return self.ends.enter_context(early_workers(self.config, place))

    def _round(self, index: int, prompts: Table, state: _State, beside: ThreadPoolExecutor) -> None:
        ledger, folder = Ledger(), round_folder(self.run_directory, index)
        stages = replace(self._stages(index, folder, state), workers=state.workers)
        self._work_ahead(stages, prompts, state, ledger)
        candidates = self._sample(index, prompts, state, ledger)
        groups = self._label(stages, candidates, state, ledger)
        reference = self._score(stages, groups, candidates, ledger)
        if self.online.lookahead and index + 1 < self.online.rounds:
            # It has its own ledger, so that work beside training takes no time from this round.
            next_sample = beside.submit(self._sample, index + 1, prompts, state, Ledger())
        else:
            next_sample = None
        trained = self._train(stages, groups, reference, candidates, ledger)
        # A round that was finished before may have been the last one.
        state.workers = None if folder.exists(ROUND_FILE) else self._early_workers(index + 1)
        if next_sample is not None:
            with ledger.of("waiting for the next sample"):
                next_sample.result()
        evaluation = self._evaluate(stages.place("evaluation"), trained, state, ledger)
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
        """Return the stages after sampling, with the newest policy and the configured reference."""
        policy = state.policies[index]
        reference = self._reference(index, state)
        state.references.append(reference)
        config = self.config.model_copy(
            update={
                "model": policy,
                "reference": self.config.reference.model_copy(update={"model": reference}),
            }
        )
        return Round(config, folder, index)

    def _reference(self, index: int, state: _State) -> ModelConfig:
        """Return pi_ref of a round: the one before, the newest policy, or an average of both."""
        if index == 0:
            return self.config.reference_model
        if not self.online.updates_reference(index):
            return state.references[-1]
        alpha = self.online.reference_update_alpha
        if alpha == 1:
            return state.policies[-1]
        place = self._in_round(index).place(REFERENCE_FOLDER)
        return averaged_reference(place, state.policies[-1], state.references[-1], alpha)

    def _sample(self, index: int, prompts: Table, state: _State, ledger: Ledger) -> Table:
        """Sample candidates from the newest policy or, with lookahead, the one before it."""
        with ledger.of("sampling"):
            sampler = self._sampler(index, state, ledger)
            candidates = _MAKING.stage(sampler.sample(self._chosen(index, prompts)))
            self._sampled()
            return candidates

    def _sampled(self) -> None:
        """End engines that are not kept, after all sampling, if others need their resources."""
        self.engines.idle()
        if not self.online.keep_engines:
            self.engines.close()

    def _sampler(self, index: int, state: _State, ledger: Ledger) -> Round:
        """Return the round with the model that samples."""
        policy = state.policies[self.online.sampler_of(index)]
        config = self.config.model_copy(update={"model": policy})
        pool = functools.partial(self._pool, policy, ledger)
        return Round(config, round_folder(self.run_directory, index), index, pool)

    def _chosen(self, index: int, prompts: Table) -> Table:
        """Return the prompts of a round."""
        place = self._in_round(index).place("prompts")
        return round_prompts(place, prompts, self.online, self.config.rows_per_part)

    def _in_round(self, index: int) -> Round:
        """Return a round with the models that the job began with."""
        return Round(self.config, round_folder(self.run_directory, index), index)

    def _work_ahead(self, stages: Round, prompts: Table, state: _State, ledger: Ledger) -> None:
        """Sample, label and score part by part. Score the reference only if the training uses no
        other groups than the round's own.
        """
        if self.online.pairs != "labels":
            return
        index = stages.index
        own = self.config.inspect is None and not mixes(state.preferences, self.online, index)
        with ledger.of(STREAMED):
            sampler, chosen = self._sampler(index, state, ledger), self._chosen(index, prompts)
            stages.work_ahead(chosen, sampler, to_reference=own)
            self._sampled()

    def _label(self, stages: Round, candidates: Table, state: _State, ledger: Ledger) -> Table:
        with ledger.of("labelling"):
            if state.examples is not None:
                own = _MAKING.stage(stages.self_play(candidates, state.examples))
            else:
                own = label_by_rewards(stages, candidates, _MAKING)
            earlier = dict(state.preferences)
            state.preferences[stages.index] = own
            place = stages.place("training-groups")
            groups = training_groups(place, own, earlier, self.online)
            check_counts_fit(self.config, groups.manifest["counts"])
            if self.config.inspect is not None:
                inspect_before_training(stages, own, self._heldout_prompts(), _MAKING)
            return groups

    def _score(
        self, stages: Round, groups: Table, candidates: Table, ledger: Ledger
    ) -> Table | None:
        with ledger.of("scoring"):
            reference = score_by_reference(stages, groups, candidates, _MAKING)
            own = self.config.sampling.function is not None and not self.online.lookahead
            if stages.index == 0 or own:  # later engines are compared with the probe at a push
                stages.check_sampler(candidates, reference)
            stages.verify(groups, reference)
            return reference

    def _train(
        self,
        stages: Round,
        groups: Table,
        reference: Table | None,
        candidates: Table,
        ledger: Ledger,
    ) -> ModelConfig:
        """Train, and separate the time of the steps from the start-up around them."""
        pool = self.engines.current
        if self.config.sampling.engines.weight_transfer == "broadcast" and pool is not None:
            stages = replace(stages, publish=Broadcast(pool))
        folder = stages.folder.child("policy")
        before = read_metrics(folder)  # steps of a stopped run took no time from this one
        with ledger.of("training start-up"):
            _MAKING.stage(stages.train(groups, reference, candidates))
        steps = [row["step_seconds"] for row in read_metrics(folder) if row not in before]
        ledger.move(sum(steps), "training start-up", "training")
        return stages.policy

    def _evaluate(
        self, place: Place, policy: ModelConfig, state: _State, ledger: Ledger
    ) -> dict[str, Any] | None:
        """Return the held-out numbers of a policy, and its gain over the one before."""
        prompts = self._heldout_prompts()
        if prompts is None:
            return None
        with ledger.of("evaluation"):
            measures = measure_policy(
                config=self.config,
                place=replace(place, label=f"{len(state.measures)} round(s) done, evaluate"),
                prompts=prompts,
                policy=policy,
                original=self.config.reference_model,
                pool=functools.partial(self._pool, policy, ledger),
                sampled=self._sampled,
            )
            before = state.measures[-1] if state.measures else None
            state.measures.append(measures)
            gain = reward_difference(measures, before) if before else None
            return {**measures.values, "gain": gain}

    def _pool(self, model: ModelConfig, ledger: Ledger) -> EnginePool:
        """Return engines with a model's weights; the ledger has lines for start, push and probe."""
        with ledger.of("engine start"):
            pool = self.engines.pool()
        weights = weights_of(model)
        with ledger.of("weight push"):
            pool.push(weights, "rounds")
        folder = folder_of(model.path)
        if model != self.config.model and folder.exists(PROBE_FILE):
            rows = json.loads((local_folder(model) / PROBE_FILE).read_bytes())  # hash is checked
            with ledger.of("probe"):
                probe_engines(pool, weights, probes_of(rows), "rounds")
        return pool

    def examples(self) -> Table | None:
        """Return the data that self-play prefers, if the job asks for self-play."""
        if self.online.pairs == "labels":
            return None
        return run_examples_stage(self.config, self._place("examples"))

    def _prompts(self, state: _State) -> Table:
        """Return all prompts of the run: the job's own, or those of the examples."""
        if state.examples is None:
            return self._read_prompts("prompts", self.config.prompts)
        return example_prompts(self._place("prompts"), state.examples, self.config.model)

    def _heldout_prompts(self) -> Table | None:
        """Return the prompts that measure the policies; None if nothing does."""
        evaluation = self.config.evaluation
        return None if evaluation is None else self._read_prompts("heldout", evaluation.prompts)

    def _read_prompts(self, name: str, source: PromptsConfig | None) -> Table:
        assert source is not None
        return run_prompts_stage(self.config, source, self._place(name))

    def _place(self, name: str) -> Place:
        return place_in(self.config, self.run_directory, name)


def _write_round(folder: Folder, index: int, record: RoundRecord, ledger: Ledger) -> None:
    """Write the round's result; if it was finished before, its first ledger stays."""
    logger.info("[round %d] %s", index, describe_record(record))
    values = record.as_json()
    if folder.exists(ROUND_FILE):
        found = folder.read_json(ROUND_FILE)
        if {**found, "seconds": None} == {**values, "seconds": None}:
            return
    seconds = ledger.close()
    logger.info("[round %d] %s", index, describe_seconds(seconds))
    result = {**values, "seconds": seconds}
    folder.write_json(ROUND_FILE, result)
    notify("round", folder, result)
