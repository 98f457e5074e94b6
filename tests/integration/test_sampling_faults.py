"""Engines that are killed while they work: nothing is lost, and no token changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sampling_tables import make_prompts, rows_of

from raydpo.config import EnginesConfig, ModelConfig, SamplingConfig
from raydpo.errors import EngineError, ModelError
from raydpo.parts import Table
from raydpo.sampling.engine import Engine
from raydpo.sampling.pool import EnginePool, engine_pool
from raydpo.sampling.stage import PARTS_IN_FLIGHT, sample_candidates
from raydpo.storage import folder_of

pytestmark = pytest.mark.slow

MAX_PROMPT_TOKENS = 16
ROWS_PER_PART = 4
PARTS = 6
CANDIDATES = 2


def killable_engine(order: Path) -> type[Engine]:
    """An engine that, once `order` holds a number k, SIGKILLs itself at its k-th finished prompt."""

    class KillableEngine(Engine):
        def _deliver(self, output: Any) -> None:
            import os
            import signal

            if output.finished and order.exists():
                left = int(order.read_text()) - 1
                order.write_text(str(left))
                if left == 0:
                    order.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            super()._deliver(output)

    return KillableEngine


def pool_of(model: Path, order: Path, max_restarts: int) -> AbstractContextManager[EnginePool]:
    sampling = settings(max_restarts)
    config = ModelConfig(path=str(model))
    engine_class = killable_engine(order)
    return engine_pool(config, sampling, MAX_PROMPT_TOKENS, "test", engine_class=engine_class)


def settings(max_restarts: int) -> SamplingConfig:
    return SamplingConfig(
        candidates=CANDIDATES,
        max_completion_tokens=16,
        engines=EnginesConfig(cpus=0.5, max_restarts=max_restarts),
    )


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("order") / "kill"


@pytest.fixture(scope="module")
def pool(ray_cluster: None, tiny_model: Path, order: Path) -> Iterator[EnginePool]:
    """One engine that may be started again."""
    with pool_of(tiny_model, order, max_restarts=2) as engines:
        yield engines


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = [(f"prompt-{i}", [1, 5 + i, 9, 11]) for i in range(PARTS * ROWS_PER_PART)]
    return make_prompts(tmp_path_factory.mktemp("prompts"), rows, ROWS_PER_PART)


def sample(
    folder: Path, prompts: Table, model: Path, pool: EnginePool, max_restarts: int = 2
) -> Table:
    return sample_candidates(
        folder=folder_of(str(folder)),
        prompts=prompts,
        model=ModelConfig(path=str(model)),
        sampling=settings(max_restarts),
        seed=0,
        round_index=0,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        what="test",
        max_quarantined_fraction=0.0,
        pool=pool,
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, prompts: Table, tiny_model: Path, pool: EnginePool
) -> Table:
    return sample(tmp_path_factory.mktemp("undisturbed"), prompts, tiny_model, pool)


def process_id(pool: EnginePool) -> int:
    import ray

    return ray.get(pool.engines[0].process_id.remote())


def test_a_killed_engine_changes_no_token(
    undisturbed: Table,
    prompts: Table,
    tiny_model: Path,
    pool: EnginePool,
    order: Path,
    tmp_path: Path,
) -> None:
    before = process_id(pool)
    order.write_text("10")
    table = sample(tmp_path, prompts, tiny_model, pool)
    assert not order.exists()
    assert process_id(pool) != before
    assert table.fingerprint == undisturbed.fingerprint
    expected = [(row["prompt_id"], k) for row in rows_of(prompts) for k in range(CANDIDATES)]
    assert [(row["prompt_id"], row["candidate"]) for row in rows_of(table)] == expected


def test_an_interrupted_stage_samples_only_what_is_missing(
    undisturbed: Table, prompts: Table, tiny_model: Path, pool: EnginePool, tmp_path: Path
) -> None:
    order = tmp_path / "kill"
    # At this prompt at most PARTS_IN_FLIGHT parts are open, so two at least are written.
    order.write_text(str(ROWS_PER_PART * (PARTS_IN_FLIGHT + 2)))
    folder = tmp_path / "candidates"
    with (
        pytest.raises(EngineError, match="died"),
        pool_of(tiny_model, order, max_restarts=0) as fragile,
    ):
        sample(folder, prompts, tiny_model, fragile, max_restarts=0)
    written = {f.name: f.stat().st_mtime_ns for f in folder.glob("part-*.parquet")}
    assert 2 <= len(written) < PARTS

    completions_before, _ = pool.made()
    table = sample(folder, prompts, tiny_model, pool)
    completions, _ = pool.made()
    missing = PARTS - len(written)
    assert completions - completions_before == missing * ROWS_PER_PART * CANDIDATES
    assert all((folder / name).stat().st_mtime_ns == time for name, time in written.items())
    assert table.fingerprint == undisturbed.fingerprint


def test_a_model_that_vllm_cannot_load_is_an_error_that_says_so(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["NoSuchModel"], "model_type": "none"}'
    )
    with (
        pytest.raises(ModelError, match="vLLM cannot load it"),
        engine_pool(ModelConfig(path=str(tmp_path)), settings(0), MAX_PROMPT_TOKENS, "test"),
    ):
        pass
