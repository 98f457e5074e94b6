"""Pass a job to the train workers, including those that started before it was known.

Every worker gets the same job, even a worker that died and started again. Ray Train's controller
and the actor here hold only references to it, because unpickling a job imports torch and
transformers, and they need neither.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from raydpo.config.job import ModelConfig


class Handover:
    """Actor that holds a reference to the job. An empty list means that no job will come."""

    def __init__(self) -> None:
        self._given = asyncio.Event()
        self._job: list[Any] = []

    async def give(self, job: list[Any]) -> None:
        """Publish the job in a list, so that Ray passes on the reference and not its value."""
        self._job = job
        self._given.set()

    async def take(self) -> list[Any]:
        """Wait for the job."""
        await self._given.wait()
        return self._job


@dataclass(frozen=True)
class GivenJob:
    """A job that exists already; `reference` is Ray's."""

    reference: Any

    def wait(self) -> Any:
        """Return the job."""
        return ray.get(self.reference)


@dataclass(frozen=True)
class AwaitedJob:
    """A job that is not known yet.

    Attributes:
        model: a model of the architecture that will be trained.
        handover: handle of the `Handover` actor that will hold the job.
    """

    model: ModelConfig
    handover: Any

    def wait(self) -> Any:
        """Wait for the job; return None if none comes."""
        given = ray.get(self.handover.take.remote())
        return ray.get(given[0]) if given else None
