from __future__ import annotations

import asyncio

from raydpo.training.handover import Handover


def test_whoever_asks_waits_for_the_job_and_who_asks_again_gets_the_same() -> None:
    async def workers() -> list[list[str]]:
        handover = Handover()
        waiting = [asyncio.create_task(handover.take()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        await handover.give(["job"])
        return [*await asyncio.gather(*waiting), await handover.take()]

    assert asyncio.run(workers()) == [["job"]] * 3
