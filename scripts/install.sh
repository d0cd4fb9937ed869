#!/usr/bin/env bash
# Make a virtual environment if there is none, and install this project with some of its extras into it.
#   scripts/install.sh VENV EXTRAS [cpu|cuda] [PYTHON]        e.g. scripts/install.sh .venv hands,render cpu
# Called by the Makefile. Safe to run again after an interruption.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2 torch=${3:-cpu} python=${4:-}
export PIP_DISABLE_PIP_VERSION_CHECK=1

if [ ! -x "$venv/bin/pip" ]; then  # pip arrives last: a venv without it was interrupted while it was made
  for candidate in python3.11 python3.12 python3.13 python3; do
    if [ -z "$python" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; fi
  done
  if [ -z "$python" ]; then
    echo "No Python >= 3.11 found. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
  fi
  echo "making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi

# PyPI's Linux wheel of torch is the CUDA build (gigabytes). The CPU build has "+cpu" in its version: ask for it by
# name, first where pip already looks, then at PyTorch's own index.
version=$(sed -n 's/^torch==//p' constraints-cpu.txt)
if [ "$torch" = cpu ] && [ "$(uname -s)" = Linux ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  "$venv/bin/pip" install -qq --no-deps "torch==$version+cpu" 2>/dev/null ||
    "$venv/bin/pip" install -q --no-deps --retries 1 --timeout 20 --index-url "${CPU_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$version+cpu" ||
    echo "No CPU build of torch $version within reach (set CPU_INDEX to an index that has one): taking the default build." >&2
fi

echo "installing handvlm[$extras] into $venv (torch: $torch)"
"$venv/bin/pip" install -qq -c constraints-cpu.txt -e ".[$extras]"
