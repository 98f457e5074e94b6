#!/bin/sh
# Makes .venv with the locked versions and with raydpo itself, as an editable install.
#
# What comes in: DEVICE (cpu, cuda, or auto: cuda where nvidia-smi works), PYTHON (the
# interpreter, else the first of 3.11, 3.12, 3.13 that is there), VENV (.venv).
# What goes out: the environment and a stamp in it. While the stamp fits the locks there is
# nothing to do; a changed lock or device makes the environment anew.
set -eu
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-auto}
VENV=${VENV:-.venv}
PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
stamp=$VENV/raydpo-installed

say() { echo "setup: $*"; }

# stop VALUE RULE WAY_OUT
stop() {
  printf 'setup: %s\n  rule: %s\n  way out: %s\n' "$1" "$2" "$3" >&2
  exit 1
}

supported() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || stop "PYTHON=$PYTHON cannot be used: $("$PYTHON" --version 2>&1 | head -n 1)" \
      "it is Python 3.11, 3.12 or 3.13 with the venv module" "name another one: make ... PYTHON=python3.11"
    return
  fi
  for PYTHON in python3.11 python3.12 python3.13 python3; do
    if supported "$PYTHON"; then return; fi
  done
  stop "no usable Python among python3.11, python3.12, python3.13 and python3 ($(python3 --version 2>&1))" \
    "raydpo needs Python 3.11, 3.12 or 3.13 with the venv module" \
    "install one (Debian: apt install python3.11 python3.11-venv), or name one: make ... PYTHON=/path/to/python3.11"
}

choose_device() {
  case $DEVICE in
  cpu | cuda) ;;
  auto)
    if [ -f "$stamp" ]; then
      DEVICE=$(sed -n 's/^device //p' "$stamp")
    elif nvidia-smi >/dev/null 2>&1; then
      DEVICE=cuda
    else
      DEVICE=cpu
    fi
    ;;
  *) stop "DEVICE=$DEVICE" "DEVICE is cpu, cuda or auto" "for example make demo DEVICE=cpu" ;;
  esac
}

check_platform() {
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || stop "this machine is $(uname -s) on $(uname -m)" \
    "the locked versions are for Linux on x86_64" \
    "use the container (deploy/README.md), or install unlocked: pip install -e '.[cpu,dev]'"
}

wanted_stamp() {
  echo "device $DEVICE"
  echo "lock $(cksum <"requirements/$DEVICE.txt") $(pwd)"
  echo "project $(cksum <pyproject.toml)"
}

pip() {
  "$VENV/bin/python" -m pip --disable-pip-version-check --no-input --quiet --quiet "$@"
}

make_venv() {
  if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    # Another lock may have left packages that are not in this one. An environment without
    # a stamp is somebody's own: it is kept, and installed into.
    if [ ! -f "$stamp" ] || [ "$(sed 2q "$stamp")" = "$(wanted_stamp | sed 2q)" ]; then return; fi
    say "the device or the locked versions changed: making $VENV anew"
  fi
  find_python
  say "making $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear "$VENV"
}

# PyPI has torch for CUDA only. The CPU build: wherever pip is told to look, else PyTorch's own index. pip takes
# neither without the hash of torch-cpu.txt.
install_cpu_torch() {
  if pip_install_torch 2>/dev/null; then return; fi
  say "fetching torch from $PYTORCH_CPU_INDEX"
  pip_install_torch --retries 2 --timeout 30 --index-url "$PYTORCH_CPU_INDEX" || stop \
    "torch was found neither by pip as it is configured here nor on $PYTORCH_CPU_INDEX, or it was another file" \
    "the CPU build of torch is not on PyPI; its version and hashes are those of requirements/torch-cpu.txt" \
    "let this machine reach that index, or put its wheel into a folder and set PIP_FIND_LINKS to it"
}

pip_install_torch() {
  pip install --no-deps --no-compile --require-hashes --requirement requirements/torch-cpu.txt "$@"
}

# All of it at once, on all cores, where pip takes one; and also where PYTHONDONTWRITEBYTECODE is set, as in many
# containers: every Ray worker would compile torch, transformers and vllm anew, which takes longer than to import them.
# Some packages carry templates that are no Python; what does not compile here fails where it is imported, if it ever is.
compile_bytecode() {
  say "compiling bytecode"
  "$VENV/bin/python" -W ignore -m compileall -q -j 0 -x '/tests?/' "$VENV/lib" >/dev/null 2>&1 || true
}

install() {
  say "installing locked versions for $DEVICE (requirements/$DEVICE.txt), a few minutes"
  if [ "$DEVICE" = cpu ]; then install_cpu_torch; fi
  # pip holds every file that it downloads against the hashes in the lock.
  pip install --no-deps --no-compile --require-hashes --requirement "requirements/$DEVICE.txt"
  pip install --no-deps --no-build-isolation --editable .
  compile_bytecode
  say "trying the imports"
  "$VENV/bin/python" -W ignore -c 'import torch, transformers, datasets, ray, vllm, raydpo' >"$VENV/imports.log" 2>&1 ||
    stop "$(tail -n 1 "$VENV/imports.log")" "torch, transformers, datasets, ray and vllm can be imported" \
      "see $VENV/imports.log (libnuma.so.1 is Debian's libnuma1); 'rm -r $VENV' starts from nothing"
}

choose_device
if [ -f "$stamp" ] && wanted_stamp | cmp -s - "$stamp"; then exit 0; fi
check_platform
make_venv
wanted_stamp | sed 2q >"$stamp" # two of its three lines: begun; an interrupted set-up goes on
install
wanted_stamp >"$stamp"
say "done"
