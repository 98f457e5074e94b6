"""How a job reaches the train workers, also those that started before it was known.

What comes in: the job, now or later. What goes out: the same job to every worker, and to one
that died and was started again. Ray Train's controller and the actor here hold references
to it only: what the job is made of imports torch and transformers, and they need neither.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from raydpo.config import ModelConfig


class Handover:
    """Actor: holds a reference to the job. An empty list says that none comes."""

    def __init__(self) -> None:
        self._given = asyncio.Event()
        self._job: list[Any] = []

    async def give(self, job: list[Any]) -> None:
        """Let the workers have it; a list, so that Ray hands the reference on and not its value."""
        self._job = job
        self._given.set()

    async def take(self) -> list[Any]:
        """Wait for it."""
        await self._given.wait()
        return self._job


@dataclass(frozen=True)
class GivenJob:
    """A job that is there: `reference` is Ray's."""

    reference: Any

    def wait(self) -> Any:
        """The job."""
        return ray.get(self.reference)


@dataclass(frozen=True)
class AwaitedJob:
    """A job that is not known yet.

    Attributes:
        model: of the architecture that will be trained.
        handover: handle of the `Handover` actor where the job will be.
    """

    model: ModelConfig
    handover: Any

    def wait(self) -> Any:
        """The job; None where none comes."""
        given = ray.get(self.handover.take.remote())
        return ray.get(given[0]) if given else None
