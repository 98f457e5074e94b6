#!/bin/sh
# Writes requirements/cpu.txt, requirements/cuda.txt and requirements/docs.txt anew from pyproject.toml.
#
# The locks hold for Linux (glibc 2.31 or newer) on x86_64 and for Python 3.11 to 3.13; they are resolved for
# 3.11, the oldest. Uses `uv` from the PATH, or from a virtual environment that is thrown
# away. `make lock UPGRADE=1` takes the newest versions; without it what still fits stays.
set -eu
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if command -v uv >/dev/null 2>&1; then
  uv=uv
else
  "${PYTHON:-python3}" -m venv "$scratch/venv"
  "$scratch/venv/bin/pip" install --quiet --quiet uv
  uv=$scratch/venv/bin/uv
fi
# compile LOCK [MORE ARGUMENTS OF uv]
compile() {
  lock=$1
  shift
  "$uv" pip compile "$@" \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --constraint requirements/constraints.txt --custom-compile-command "make lock" --generate-hashes --quiet \
    --output-file "requirements/$lock" \
    ${UPGRADE:+--upgrade} >/dev/null
}

# compile_device DEVICE [MORE ARGUMENTS OF uv]
compile_device() {
  device=$1
  shift
  compile "$device.txt" pyproject.toml --extra "$device" --extra jobs --extra lora --extra peers --extra dev "$@"
}

# The CPU build of torch: from the folder of wheels that pip is told of, else from PyTorch's
# index. The CUDA lock is resolved without that folder: torch is PyPI's own there.
compile_device cpu --override requirements/overrides.txt \
  ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} 2>/dev/null ||
  compile_device cpu --override requirements/overrides.txt --torch-backend cpu
compile_device cuda
compile docs.txt --group pyproject.toml:docs
echo "requirements/cpu.txt, cuda.txt and docs.txt are written: look at their diff, then make test and make docs."
echo "A new version of torch+cpu needs its hashes in requirements/torch-cpu.txt (a test says so)."
