#!/usr/bin/env bash
# Measures the project on this machine's GPU in ten minutes, from the tree as it is; nothing is
# installed. What it measures and its flags: bash scripts/bench_gpu.sh --help
# PYTHON = the interpreter that has jax for the card, by default .venv's, else python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

python="${PYTHON:-}"
if [ -z "$python" ]; then
  python=python3
  [ ! -x "$root/.venv/bin/python" ] || python="$root/.venv/bin/python"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || {
  echo "error: PYTHON=$python: an interpreter of Python 3.11 or newer is needed" >&2
  exit 2
}
exec "$python" "$root/scripts/benchmarks/gpu_run.py" "$@"
