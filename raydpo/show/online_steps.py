"""The stages of online rounds that can be made again, of any round.

Each round starts from the models that the run itself has of the rounds before.
"""

from __future__ import annotations

from functools import partial

from raydpo.config.job import ModelConfig, OnlineConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import round_folder
from raydpo.core.storage import Folder
from raydpo.core.walk import Planned
from raydpo.online.average import REFERENCE_FOLDER, average_stage, averaged_reference
from raydpo.online.measure import measure_policy
from raydpo.online.prompts import example_prompts, round_prompts, round_prompts_stage
from raydpo.online.replay import mixes, replayed_rounds, training_groups, training_groups_stage
from raydpo.pipeline.round import Round, place_in
from raydpo.show.inputs import Again, finished_table, policy_after, reference_of, section
from raydpo.show.steps import (
    RoundAgain,
    Step,
    examples_step,
    folder_name,
    prompts_step,
)

#: The folder of a policy's measures that is finished last.
_LAST_MEASURE = "original-logps"


def online_steps(again: Again, rounds: list[int]) -> list[Step]:
    """The stages that `raydpo online` made: those of the whole run, then those of each round."""
    online = section(again.config.online, "online", again.run)
    return _steps_of_run(again) + [
        step for index in rounds for step in _RoundSteps(again, online, index).steps()
    ]


def _steps_of_run(again: Again) -> list[Step]:
    config, evaluation = again.config, again.config.evaluation
    of_examples = config.online is not None and config.online.pairs == "self_play"

    def prompts_of_examples() -> Planned:
        examples = finished_table(again.run.child("examples"))
        place = place_in(config, again.scratch, "prompts")
        return Planned(place, partial(example_prompts, place, examples, config.model))

    own = prompts_step(again, "prompts", config.prompts, "prompts")
    heldout = prompts_step(again, "heldout", evaluation and evaluation.prompts, "evaluation")
    original = partial(_measured, again, "original", config.model)
    return [
        examples_step(again, "examples"),
        Step("prompts", prompts_of_examples) if of_examples else own,
        heldout,
        Step("original", original, _LAST_MEASURE),
    ]


def _measured(again: Again, name: str, policy: ModelConfig) -> Planned:
    """The held-out numbers of a policy and the tables behind them."""
    section(again.config.evaluation, "evaluation", again.run)
    place = place_in(again.config, again.scratch, name)
    make = partial(
        measure_policy,
        config=again.config,
        place=place,
        prompts=finished_table(again.run.child("heldout")),
        policy=policy,
        original=again.config.reference_model,
        pool=None,
        sampled=lambda: None,
    )
    return Planned(place, make)


class _RoundSteps:
    """The steps of one round, in the order in which a round makes them."""

    def __init__(self, again: Again, online: OnlineConfig, index: int) -> None:
        self.again, self.online, self.index = again, online, index
        self.there, self.here = (round_folder(f, index) for f in (again.run, again.scratch))
        self.mixed = mixes(range(index), online, index)

    def steps(self) -> list[Step]:
        """All that a round may have."""
        own, name = self._round(), folder_name(self.there)
        self_play = self.online.pairs == "self_play"
        return [
            Step(f"{name}/prompts", self._prompts),
            Step(f"{name}/{REFERENCE_FOLDER}", self._reference_model),
            *own.steps("candidates", "scores"),
            *(
                [Step(f"{name}/preferences", self._self_play)]
                if self_play
                else own.steps("preferences")
            ),
            Step(f"{name}/inspection", self._inspection),
            Step(f"{name}/training-groups", self._training_groups),
            *own.steps("reference", "sampler", "policy"),
            Step(f"{name}/evaluation", self._evaluation, _LAST_MEASURE),
        ]

    def _inspection(self) -> Planned:
        measured = self.again.config.evaluation is not None
        prompts = finished_table(self.again.run.child("heldout")) if measured else None
        return self._round().inspection(prompts)

    def _round(self) -> RoundAgain:
        config, run = self.again.config, self.again.run
        sampler = policy_after(config, run, self.online.sampler_of(self.index))
        reference = reference_of(config, self.online, run, self.index)
        models = {
            "model": policy_after(config, run, self.index),
            "reference": config.reference.model_copy(update={"model": reference}),
        }
        return RoundAgain(
            sampler=config.model_copy(update={"model": sampler}),
            config=config.model_copy(update=models),
            there=self.there,
            here=self.here,
            index=self.index,
            groups="training-groups" if self.mixed else "preferences",
            run=run,
        )

    def _prompts(self) -> Planned:
        prompts = finished_table(self.again.run.child("prompts"))
        of = self._place("prompts"), prompts, self.online, self.again.config.rows_per_part
        return Planned(of[0], partial(round_prompts, *of), partial(round_prompts_stage, *of))

    def _reference_model(self) -> Planned:
        config, run = self.again.config, self.again.run
        policy = policy_after(config, run, self.index)
        before = reference_of(config, self.online, run, self.index - 1)
        of = self._place(REFERENCE_FOLDER), policy, before, self.online.reference_update_alpha
        return Planned(of[0], partial(averaged_reference, *of), partial(average_stage, *of))

    def _self_play(self) -> Planned:
        examples = finished_table(self.again.run.child("examples"))
        own = self._round()
        return own.stages.self_play(own.table("candidates"), examples)

    def _training_groups(self) -> Planned:
        own = finished_table(self.there.child("preferences"))
        of = self._place("training-groups"), own, self._earlier(), self.online
        return Planned(of[0], partial(training_groups, *of), partial(training_groups_stage, *of))

    def _place(self, folder: str) -> Place:
        return Round(self.again.config, self.here, self.index).place(folder)

    def _earlier(self) -> dict[int, Table]:
        """Preferences of the rounds that groups may be replayed from."""
        rounds = replayed_rounds(range(self.index), self.online, self.index)
        folders: dict[int, Folder] = {r: round_folder(self.again.run, r) for r in sorted(rounds)}
        return {r: finished_table(folder.child("preferences")) for r, folder in folders.items()}

    def _evaluation(self) -> Planned:
        policy = policy_after(self.again.config, self.again.run, self.index + 1)
        return _measured(self.again, f"{folder_name(self.there)}/evaluation", policy)
