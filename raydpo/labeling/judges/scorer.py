"""A judge as the scoring stage sees it: its check, its key, and how a worker loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydpo.config.content import content_of
from raydpo.config.judges import JudgeConfig, ServedJudgeConfig
from raydpo.config.labeling import ClassifierReading, RewardConfig
from raydpo.core.storage import Folder
from raydpo.labeling.asking import run_loop
from raydpo.labeling.judges.kept import KeptAnswers
from raydpo.labeling.judges.pairwise import compare
from raydpo.labeling.judges.panel import Bench, bench_of, open_panel
from raydpo.labeling.judges.pointwise import score
from raydpo.labeling.judges.rubric import rubric_of
from raydpo.labeling.judges.self_test import pass_self_test, planted_cases
from raydpo.labeling.judges.served import check_served, served_inputs
from raydpo.labeling.rewards import Judged
from raydpo.labeling.signature import NO_LISTS, Lists


@dataclass(frozen=True)
class JudgeScorer:
    """A reward that is a judge; see `scorers.Scorer`."""

    reward: RewardConfig
    judge: JudgeConfig

    def check(self) -> None:
        """Check the rubric, the cases of the self-test, and models that raydpo serves.

        Raises:
            ConfigError, ModelError: one of them cannot be used.
        """
        planted_cases(self.judge, rubric_of(self.judge))
        for served in self._served():
            check_served(served)

    def inputs(self) -> dict[str, str]:
        """Return the hashes of the rubric, and of the models that raydpo serves."""
        return {
            "rubric": rubric_of(self.judge).sha256,
            **{
                f"{name} of served judge {number}": value
                for number, served in enumerate(self._served())
                for name, value in served_inputs(served).items()
            },
        }

    def _served(self) -> list[ServedJudgeConfig]:
        return [member.served for member in self.judge.members if member.served is not None]

    def settings(self) -> dict[str, Any]:
        """Return what the scores depend on beside the rubric."""
        column, served = self.judge.baseline_column, self._served()
        return {
            "judge": content_of(self.judge),
            **content_of(self.reward, without=ClassifierReading),
            **({"served": [content_of(one) for one in served]} if served else {}),
            **({"baseline_column": column} if column is not None else {}),
        }

    def columns(self) -> tuple[str, ...]:
        """Return the columns that the rubric names, and that of the baseline."""
        column = self.judge.baseline_column
        own = rubric_of(self.judge).columns
        return own if column is None or column in own else (*own, column)

    def stale_with(self) -> str:
        """Describe what makes the scores stale."""
        return (
            "its rubric, its models, their `url`s and `version`s, and what it is asked; raydpo "
            "cannot see which model answers there"
        )

    def load(self, search: tuple[str, ...], answers: Folder | None = None) -> JudgeAtWork:
        """Prepare it in a worker, and let it pass its self-test.

        Raises:
            ConfigError: a variable of a header is not set.
            ServiceError: it fails the self-test, or does not answer.
            BudgetError: its budget is spent.
        """
        bench = bench_of(self.judge, self.reward.scorer, KeptAnswers(answers))
        run_loop(pass_self_test(bench))
        return JudgeAtWork(bench)


@dataclass(frozen=True)
class JudgeAtWork:
    """A judge that a worker asks about the rows of parts."""

    bench: Bench

    def __call__(
        self, prompts: list[str], completions: list[str], more: Lists = NO_LISTS, /
    ) -> Judged:
        """Return scores or refusals.

        Raises:
            ServiceError, BudgetError: the run cannot go on.
        """
        if not completions:  # all prompts of the part were refused
            return Judged([])
        return run_loop(self._judged(prompts, completions, more))

    async def _judged(self, prompts: list[str], completions: list[str], more: Lists) -> Judged:
        judge = score if self.bench.judge.mode == "pointwise" else compare
        async with open_panel(self.bench) as panel:
            return await judge(panel, prompts, completions, more)


def try_judge(judge: JudgeConfig, scorer: str, answers: Folder | None) -> str:
    """Let a judge pass its self-test without writing anything; return in words how it did.

    Answers that the run has are not asked for again.

    Raises:
        ConfigError, ServiceError: the errors that a run would end with.
    """
    if any(member.served for member in judge.members):
        return "is served in the cluster: its self-test comes before its first part"
    return run_loop(pass_self_test(bench_of(judge, scorer, KeptAnswers(answers, writes=False))))
