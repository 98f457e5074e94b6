"""List what is missing here, and the wheels for a machine without a network.

For this environment, or for a Python and a platform, it prints names with the locked versions of
requirements/cuda.txt. It needs only the standard library.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

_LOCK = Path(__file__).parents[2] / "requirements" / "cuda.txt"
#: From what is imported to the distributions that carry it, torch and transformers apart.
CORE = {
    "pydantic": ("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    "pyarrow": ("pyarrow",),
    "yaml": ("pyyaml",),
    "safetensors": ("safetensors",),
    "numpy": ("numpy",),
}
#: Used where they are there: adapters, TRL beside us, the plot.
OPTIONAL = {
    "peft": ("peft", "accelerate", "psutil"),
    "trl": ("trl", "accelerate", "datasets", "dill", "multiprocess", "xxhash", "pandas"),
    "matplotlib": ("matplotlib",),
    "ray": (),
    "vllm": (),
}
#: Wheels are tagged with the oldest glibc that they run on; pip matches each tag exactly.
_LINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def missing(wanted: dict[str, tuple[str, ...]]) -> list[str]:
    """Packages that cannot be imported here."""
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def locked() -> dict[str, str]:
    """Versions of requirements/cuda.txt by distribution."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", _LOCK.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def pins(names: list[str]) -> list[str]:
    """`name==version` of each distribution that the lock has."""
    versions = locked()
    return [f"{name}=={versions[name]}" for name in dict.fromkeys(names) if name in versions]


def download_command(python: str, platform: str, names: list[str]) -> str:
    """A command that fetches these wheels, and nothing else, into `wheels/`."""
    machine = platform.removeprefix("linux_")
    tags = [f"{tag}_{machine}" for tag in _LINUX] if platform.startswith("linux_") else [platform]
    words = ["python3", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    words += ["--python-version", python, "--implementation", "cp"]
    words += [word for tag in tags for word in ("--platform", tag)]
    return shlex.join([*words, "-d", "wheels", *pins(names)])


def wheels_text(python: str, platform: str) -> str:
    """What `--wheels` prints."""
    core = [name for names in CORE.values() for name in names]
    optional = [name for names in OPTIONAL.values() for name in names]
    optional = [name for name in optional if name not in core]
    return "\n".join(
        [
            "torch for CUDA and transformers are taken as they are there. The training core needs:",
            *pins(core),
            "",
            "Used where they are there (TRL, adapters, the plot):",
            *pins(optional),
            "",
            "# the core",
            download_command(python, platform, core),
            "# the optional ones",
            download_command(python, platform, optional),
            "# there: python3 -m pip install --no-index --no-deps --target /tmp/site wheels/*.whl",
            "# and then PYTHONPATH=/tmp/site",
        ]
    )
