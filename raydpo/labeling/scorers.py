"""Define what the scoring stage needs from each kind of reward: check, key, and loading.

The configuration of a reward becomes its scorer. An implicit reward has none: a separate stage
makes its scores from tables of log-probs (`implicit.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from raydpo.config.content import content_of
from raydpo.config.http import HttpConfig
from raydpo.config.job import ModelConfig, RewardConfig
from raydpo.config.labeling import ClassifierReading
from raydpo.core.own_code import OwnCode
from raydpo.core.own_process import cluster_environment
from raydpo.core.storage import Folder
from raydpo.labeling.classifier import (
    judge_with_classifier,
    label_index,
    load_classifier,
    read_otherwise_before,
)
from raydpo.labeling.judges.scorer import JudgeScorer
from raydpo.labeling.over_http import judge_over_http
from raydpo.labeling.reward_process import (
    RewardProcess,
    code_of,
    columns_of,
    judge_bounded,
    look_of,
)
from raydpo.labeling.rewards import Judged
from raydpo.labeling.signature import NO_LISTS, Lists
from raydpo.models.loading import tokenizer_fingerprint, weights_fingerprint


class Judge(Protocol):
    """A scorer at work."""

    def __call__(
        self, prompts: list[str], completions: list[str], more: Lists = NO_LISTS, /
    ) -> Judged:
        """Return a reward or a refusal for each completion; `more` are further lists by name."""
        ...


class Scorer(Protocol):
    """A reward as the scoring stage sees it."""

    def check(self) -> None:
        """Check that everything it names exists and fits, without a cluster.

        Raises:
            ConfigError, ModelError: something it names does not exist, or cannot be used.
        """
        ...

    def inputs(self) -> dict[str, str]:
        """Return hashes of all its components, by what each is."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what its scores depend on in addition to the inputs; a JSON value."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the columns of the data that it cannot do without."""
        ...

    def stale_with(self) -> str | None:
        """Describe what makes its scores stale; None if there is nothing to say."""
        ...

    def load(self, search: tuple[str, ...], answers: Folder | None = None) -> Judge:
        """Prepare it in a worker.

        Modules are looked for in the folders `search` first. Judges keep answers in `answers`.
        """
        ...


def scorer_of(reward: RewardConfig) -> Scorer:
    """Return the scorer of a reward that is not implicit."""
    match reward.kind:
        case "function":
            return _FunctionScorer(reward, str(reward.function))
        case "classifier":
            return _ClassifierScorer(reward)
        case "http":
            assert reward.http is not None
            return _HttpScorer(reward, reward.http)
        case "judge":
            assert reward.judge is not None
            return JudgeScorer(reward, reward.judge)
        case "implicit":
            raise AssertionError("an implicit reward is read from tables: see implicit.py")
        case _:
            assert_never(reward.kind)


@dataclass(frozen=True)
class _FunctionScorer:
    reward: RewardConfig
    path: str

    def check(self) -> None:
        look_of(self.reward)

    def inputs(self) -> dict[str, str]:
        return {name or "source": value for name, value in self._code().hashes.items()}

    def settings(self) -> dict[str, Any]:
        return {
            "function": self.path,
            **content_of(self.reward, without=ClassifierReading),
            **({"as_messages": True} if self.reward.as_messages else {}),
            **({"options": self.reward.options} if self.reward.options else {}),
            **({"columns": self.reward.columns} if self.reward.columns else {}),
        }

    def columns(self) -> tuple[str, ...]:
        return columns_of(self.reward)

    def stale_with(self) -> str:
        return self._code().covered

    def load(self, search: tuple[str, ...], answers: Folder | None = None) -> Judge:
        limits = self.reward.import_seconds, self.reward.max_memory_gib
        process = RewardProcess(
            self.path, *limits, search, cluster_environment(), options=tuple(self.reward.options)
        )
        return functools.partial(judge_bounded, process, self.reward)

    def _code(self) -> OwnCode:
        return code_of(self.reward)


@dataclass(frozen=True)
class _ClassifierScorer:
    reward: RewardConfig

    def check(self) -> None:
        label_index(self.reward)

    def inputs(self) -> dict[str, str]:
        model = ModelConfig(path=str(self.reward.classifier))
        return {
            "weights": weights_fingerprint(model),
            "tokenizer": tokenizer_fingerprint(model),
            **read_otherwise_before(model),
        }

    def settings(self) -> dict[str, Any]:
        return content_of(self.reward)

    def columns(self) -> tuple[str, ...]:
        return ()

    def stale_with(self) -> None:
        return None

    def load(self, search: tuple[str, ...], answers: Folder | None = None) -> Judge:
        return functools.partial(judge_with_classifier, load_classifier(self.reward))


@dataclass(frozen=True)
class _HttpScorer:
    reward: RewardConfig
    http: HttpConfig

    def check(self) -> None:
        """Do nothing on this machine: `raydpo check` asks the service for two rows."""

    def inputs(self) -> dict[str, str]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {
            "http": content_of(self.http),
            **content_of(self.reward, without=ClassifierReading),
            **({"columns": self.http.columns} if self.http.columns else {}),
        }

    def columns(self) -> tuple[str, ...]:
        return self.http.columns

    def stale_with(self) -> str:
        version = f"its `version` ({self.http.version!r})"
        return f"its `url`, its `shape`, {version}; raydpo cannot see which model answers there"

    def load(self, search: tuple[str, ...], answers: Folder | None = None) -> Judge:
        return functools.partial(judge_over_http, self.http, self.reward.batch_size)
