"""For the tests of sampling: prompts tables, rows of finished ones, other weights."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from raydpo.config.job import ModelConfig
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.core.storage import fingerprint, folder_of
from raydpo.core.tables import Row
from raydpo.models.loading import load_causal_lm, local_folder
from raydpo.sampling.desk import Seat
from raydpo.sampling.pool import EnginePool


def make_prompts(
    folder: Path, prompts: Sequence[tuple[str | int, list[int]]], rows_per_part: int
) -> Table:
    """Write a prompts table of (prompt_id, prompt_ids)."""
    rows = [
        {"prompt_id": str(name), "prompt": str(ids), "messages": None, "prompt_ids": ids}
        for name, ids in prompts
    ]
    stage = Stage(
        Place(folder_of(str(folder)), "test"), "prompts", "prompts", {"rows": fingerprint(rows)}, {}
    )
    open_stage(stage)
    for index, start in enumerate(range(0, len(rows), rows_per_part)):
        write_part(stage, index, PartResult(rows[start : start + rows_per_part]))
    return Table(stage.folder, commit(stage, {"input": len(rows)}))


def rows_of(table: Table) -> list[Row]:
    """All rows of a finished table."""
    return list(read_rows(table.folder, table.manifest))


def key_of(row: Row) -> tuple[str, int]:
    """What identifies a candidate."""
    return row["prompt_id"], row["candidate"]


def greedy_tokens(model: ModelConfig, prompt: list[int], tokens: int) -> list[int]:
    """What transformers completes a prompt with."""
    import torch

    ids = load_causal_lm(model).generate(
        torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return ids[0, len(prompt) :].tolist()


def logps_of(model: ModelConfig, prompt: list[int], completion: list[int]) -> list[float]:
    """What transformers says of a completion's tokens, on one unpadded sequence."""
    import torch

    ids = torch.tensor([prompt + completion])
    with torch.inference_mode():
        logits = load_causal_lm(model)(ids).logits.float()
    logps = torch.log_softmax(logits[0, len(prompt) - 1 : -1], dim=-1)
    return logps.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()


def seat_of(pool: EnginePool, number: int = 0) -> Seat:
    """An engine of a pool, once it answers."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for seat in pool.seats():
            if seat.number == number:
                return seat
        time.sleep(0.1)
    raise AssertionError(f"engine {number} does not answer")


def process_id(pool: EnginePool, engine: int = 0) -> int:
    """The process of an engine's actor; of the next one, where it has just died."""
    import ray
    from ray.exceptions import RayActorError

    while True:
        try:
            return ray.get(seat_of(pool, engine).handle.process_id.remote())
        except RayActorError:
            time.sleep(0.1)  # its keeper has not seen it yet


def with_noise(model: ModelConfig, folder: Path, without: str = "") -> Path:
    """A copy of a model with noise on every tensor, as if it had been trained."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(local_folder(model), folder)
    generator = torch.Generator().manual_seed(0)
    for path in folder.glob("*.safetensors"):
        tensors = {
            name: value + 0.1 * torch.randn(value.shape, generator=generator)
            for name, value in load_file(path).items()
            if name != without
        }
        save_file(tensors, path, metadata={"format": "pt"})
    return folder
