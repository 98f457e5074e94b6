"""A small acceptance run on the CPU, with only the core, and the results that it keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from job_modules import modules_of
from packaging.requirements import Requirement

from raydpo.check.online import check_sections_of_rounds
from raydpo.config.file import load_config

ROOT = Path(__file__).parents[3]
#: What the training core imports: torch and transformers, and what `--wheels` calls the core.
CORE = ("torch", "transformers", "pydantic", "pyarrow", "PyYAML", "safetensors", "numpy")
#: How names of tasks begin that need CUDA, peft, TRL or vLLM.
NOT_HERE = ("attention varlen", "attention flex", "CPU offload", "compile", "LoRA", "speed", "vLLM")


def closure(names: tuple[str, ...]) -> set[str]:
    """Distributions with all that they require without extras, of those that are there."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name in found:
            continue
        try:
            waiting += metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # torch's CUDA libraries, on a machine without
        found.add(name)
    return found


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """The interpreter of an environment with the core alone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (site,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    for name in closure(CORE):
        distribution = metadata.distribution(name)
        files = distribution.files or []
        for top in {file.parts[0] for file in files if file.parts[0] != ".."}:
            place = site / top
            if not place.exists() and top != "__pycache__":
                place.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return str(tmp_path / "bare" / "bin" / "python")


def run(*arguments: str, python: str = sys.executable) -> Any:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [python, "jobs/gpu_acceptance.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_it_runs_in_small_with_nothing_but_the_core(tmp_path: Path, bare_python: str) -> None:
    done = run("--output", str(tmp_path), "--minutes", "40", python=bare_python)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "peft, trl, matplotlib, ray, vllm" in done.stdout.splitlines()[0]
    results = json.loads((tmp_path / "acceptance-cpu.json").read_text())["results"]
    assert {r["status"] for r in results.values()} == {"passed", "left out"}
    left_out = [name for name, r in results.items() if r["status"] == "left out"]
    assert [name for name in left_out if not name.startswith(NOT_HERE)] == []
    noises = [r["noise"] for r in results.values() if r["status"] == "passed"]
    assert all(noise["own_cpu_seconds"] > 0 for noise in noises)
    assert results["attention flex float32 on CPU"]["status"] == "passed"
    assert results["FSDP2 over all GPUs bfloat16"]["values"]["ranks"] == 2
    table = (tmp_path / "acceptance-cpu.md").read_text()
    assert "| `CPU offload bfloat16` | left out | cpu_offload keeps" in table
    assert "- the machine meanwhile (" in table
    again = run("--output", str(tmp_path), python=bare_python)
    assert not [x for x in again.stdout.splitlines() if x.startswith("passed")]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_short_calls_add_up_to_one_page_with_trl_beside_us(tmp_path: Path) -> None:
    for module in ("trl", "peft", "matplotlib"):
        pytest.importorskip(module)
    for only in ("speed 1B, K = 2: ", "speed 8B LoRA"):
        done = run("--output", str(tmp_path), "--minutes", "12", "--only", only)
        print(done.stdout, done.stderr)
        assert done.returncode == 0
    results = json.loads((tmp_path / "acceptance-cpu.json").read_text())["results"]
    assert [result["status"] for result in results.values()] == ["passed"] * 5
    best = results["speed 1B, K = 2: trl_best"]["values"]
    assert best["step_seconds"] == min(best["tried"].values())
    page = (tmp_path / "acceptance-cpu.md").read_text()
    assert "dry run with small shapes" in page
    assert "losses differ" not in page
    (line,) = [x for x in page.splitlines() if x.startswith("| 1B, K = 2 | `trl_stock`")]
    ratio = results["speed 1B, K = 2: trl_stock"]["values"]["step_seconds"]
    ratio /= results["speed 1B, K = 2: raydpo"]["values"]["step_seconds"]
    assert line.endswith(f"| {ratio:.3g} |")
    aims = [x for x in page.splitlines() if x.endswith("| not measured |")]
    assert len(aims) == 8
    assert aims == [x for x in done.stdout.splitlines() if x.endswith("| not measured |")]
    assert "matrix products | attention | head |" in page
    assert (tmp_path / "acceptance-cpu.png").stat().st_size > 10_000
    assert "(acceptance-cpu.png)" in page


@pytest.mark.thorough
def test_the_adapter_is_trained_and_exported_where_peft_is_there(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    done = run("--output", str(tmp_path), "--only", "LoRA")
    assert "| `LoRA bfloat16` | passed |" in done.stdout, done.stdout


def test_what_vllm_runs_is_a_valid_configuration() -> None:
    with modules_of("acceptance", ["right_vllm"]) as jobs:
        for name, (job, _) in jobs.right_vllm.RUNS.items():
            overrides = jobs.right_vllm.overrides(name)
            config = load_config(ROOT / "jobs" / f"{job}.yaml", overrides)
            assert config.training.device == "cuda"
            if config.online is not None:
                check_sections_of_rounds(config)


def test_wheels_are_the_locked_ones() -> None:
    done = run("--wheels", "--python", "3.12", "--platform", "linux_x86_64")
    lock = (ROOT / "requirements/cuda.txt").read_text()
    pins = [line for line in done.stdout.splitlines() if "==" in line and " " not in line]
    assert any(pin.startswith("pydantic-core==") for pin in pins)
    assert all(f"\n{pin}" in lock for pin in pins)
    assert "--only-binary :all: --python-version 3.12" in done.stdout
