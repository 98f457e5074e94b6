"""The KL of rounds is measured by the policy's forward pass if its sampler gave no log-probs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder
from raydpo.online.measure import _kl, _logps


def table(folder: Path, name: str, rows: list[dict[str, Any]]) -> Table:
    place = Place(Folder(str(folder / f"{name}-{len(rows)}")), "test")
    stage = Stage(place, name, name, {}, {})
    open_stage(stage)
    write_part(stage, 0, PartResult(rows))
    return Table(stage.folder, commit(stage, {"input": len(rows)}))


def sample(prompt: str, candidate: int, logps: list[float] | None) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "candidate": candidate,
        "prompt": prompt,
        "prompt_ids": [1],
        "completion": "c",
        "completion_ids": [5, 6],
        "sampler_token_logps": logps,
        "finish_reason": "stop",
        "seed": 0,
        "policy": "w",
    }


def logps(group: str, values: list[list[float]]) -> dict[str, Any]:
    return {"group_id": group, "reference_token_logps": values}


def test_either_way_the_mean_is_the_same(tmp_path: Path) -> None:
    policy = {"a": [[-1.0, -2.0], [-1.0, -1.0]], "b": [[-0.5, -0.5]]}
    original = table(
        tmp_path / "original",
        "reference",
        [logps("a", [[-2.0, -2.0], [-2.0, -2.0]]), logps("b", [[-1.0, -1.0]])],
    )
    means: list[float] = []
    for given in (True, False):
        rows = [
            sample(name, k, values if given else None)
            for name, group in policy.items()
            for k, values in enumerate(group)
        ]
        samples = table(tmp_path / str(given), "candidates", rows)
        scored = [logps(name, values) for name, values in policy.items()]
        own = None if given else table(tmp_path / "policy", "reference", scored)
        means.append(_kl(_logps(samples, original, own))["mean"])
    assert means[0] == means[1] == pytest.approx((1 + 2 + 1) / 3)
