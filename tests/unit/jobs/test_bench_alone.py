"""A contender measured in this process, and where its time goes by family of kernel."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.jobs.job_modules import modules_of, tiny_scenario

MODULES = ("spec", "alone", "kernels", "processes", "ours")


@pytest.fixture(scope="module")
def jobs() -> Iterator[Any]:
    """The modules of the job, which stand in jobs/ and not in the package."""
    with modules_of("benchmark", MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def tiny(jobs: Any) -> Any:
    return tiny_scenario(jobs.spec, steps=4)


@pytest.fixture(scope="module")
def measured(jobs: Any, tiny: Any) -> Any:
    """Our train step: one step to warm up, two timed, one under the profiler."""
    turns = jobs.processes.Turns(warm_up=1, repeats=2, count=1, peak_size=64)
    return jobs.alone.run_alone(tiny, jobs.spec.OURS, turns, profiled=1)


@pytest.mark.thorough
def test_every_turn_is_timed_and_the_warm_up_is_not(measured: Any) -> None:
    runs, _ = measured
    assert len(runs.seconds) == len(runs.peak_flops) == 2
    assert len(runs.losses) == 3  # of warm-up and turns
    assert runs.peak_bytes > runs.growth_bytes > 0


def test_families_share_all_time_of_the_profiled_step(jobs: Any, measured: Any) -> None:
    _, kernels = measured
    families = kernels["families"]
    assert all(seconds > 0 for seconds in families.values())
    assert len(families) == 6
    assert sum(families.values()) == pytest.approx(kernels["busy_seconds"], rel=1e-6)
    assert kernels["busy_seconds"] <= kernels["span_seconds"]


@pytest.mark.thorough
@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"lora_rank": 4}])
def test_contenders_that_save_memory_begin_at_the_same_loss(
    jobs: Any, tiny: Any, measured: Any, change: dict[str, Any]
) -> None:
    if "lora_rank" in change:
        pytest.importorskip("peft")
    turns = jobs.processes.Turns(warm_up=1, repeats=1, count=1, peak_size=64)
    runs, kernels = jobs.alone.run_alone(tiny, replace(jobs.spec.OURS, **change), turns)
    assert kernels is None
    assert runs.losses[0] == pytest.approx(measured[0].losses[0], rel=1e-6)
    trained_all = runs.losses[1] == pytest.approx(measured[0].losses[1], rel=1e-6)
    assert trained_all == ("lora_rank" not in change)


def test_an_output_layer_of_its_own_adds_its_parameters(jobs: Any, tiny: Any) -> None:
    def parameters(tied: bool) -> int:
        scenario = replace(tiny, model=replace(tiny.model, tied=tied), device="meta")
        return sum(p.numel() for p in jobs.ours.random_model(scenario).parameters())

    assert parameters(tied=False) - parameters(tied=True) == 128 * 64


def test_contenders_on_a_gpu_see_one_and_ours_has_its_allocator(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    ours = jobs.processes.environment(jobs.spec.OURS, 1, "cuda")
    stock = jobs.processes.environment(jobs.spec.TRL_STOCK, 1, "cuda")
    assert ours["CUDA_VISIBLE_DEVICES"] == stock["CUDA_VISIBLE_DEVICES"] == "2"
    assert ours["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in stock
    assert "MALLOC_MMAP_MAX_" not in ours


def _operation(name: str, parent: Any = None, kernels: tuple[tuple[str, float], ...] = ()) -> Any:
    launched = [SimpleNamespace(name=n, duration=t) for n, t in kernels]
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name="CPU"),
        is_async=False,
        cpu_parent=parent,
        kernels=launched,
        is_user_annotation=False,
    )


def _kernel(start: float, end: float, annotation: bool = False) -> Any:
    return SimpleNamespace(
        name="k",
        device_type=SimpleNamespace(name="CUDA"),
        is_async=False,
        is_user_annotation=annotation,
        time_range=SimpleNamespace(start=start, end=end),
    )


def test_a_kernel_belongs_to_what_launched_it_and_gaps_are_idle(jobs: Any) -> None:
    head = _operation("_LinearLogpsBackward")
    step = _operation("Optimizer.step#AdamW.step", kernels=(("Optimizer.step#AdamW.step", 99.0),))
    events = [
        head,
        step,
        _operation("aten::mm", head, (("nvjet_tst_128x256", 10.0),)),
        _operation("aten::mm", None, (("nvjet_tst_128x256", 20.0),)),
        _operation("torch_attn::_varlen_attn", None, (("flash_fwd_kernel", 5.0),)),
        _operation("aten::_fused_adamw_", step, (("multi_tensor_apply_kernel", 7.0),)),
        _operation("aten::copy_", None, (("direct_copy_kernel_cuda", 3.0),)),
        _operation("triton_poi_fused_mul_silu_0", None, (("triton_poi_fused_mul_silu_0_", 2.0),)),
        # 47 microseconds of kernels, two at a time for 5 of them; then one that nothing claims
        *(_kernel(a, b) for a, b in ((0, 20), (15, 35), (40, 47), (90, 100))),
        _kernel(0, 1000, annotation=True),
    ]
    times = jobs.kernels.kernel_times(events)
    families = {name: round(seconds * 1e6, 6) for name, seconds in times.families.items()}
    assert families == {
        "matrix products": 20,
        "attention": 5,
        "head": 10,
        "optimizer and clipping": 7,
        "copies and casts": 3,
        "elementwise, norms and the rest": 2,
    }
    assert times.span_seconds * 1e6 == pytest.approx(100)
    assert times.busy_seconds * 1e6 == pytest.approx(35 + 7 + 10)
    assert times.idle_seconds * 1e6 == pytest.approx(48)
    assert times.unattributed_seconds * 1e6 == pytest.approx(57 - 47)


def test_names_of_kernels_are_those_that_torch_records(jobs: Any) -> None:
    # The families go by names that PyTorch and our own functions have today.
    head = importlib.import_module("raydpo.training.linear_head")
    rows = importlib.import_module("raydpo.training.attention.rows")
    for function, family in ((head._LinearLogps, "head"), (rows._GatherRows, "attention")):
        chain = ["aten::mul", f"{function.__name__}Backward"]
        assert jobs.kernels._family(chain, "kernel") == family
