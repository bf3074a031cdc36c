#!/usr/bin/env bash
# Mutation test of fedmedjax/fed with cosmic-ray; arguments go to scripts/mutants.py, see there.
# usage: bash scripts/mutants.sh [--minutes=60] [--seed=0] [--seconds=60] [FILE[:LINE] ...]
set -euo pipefail
. "$(dirname "$0")/environment.sh"
make_venv
install_for_tests
install_into_venv mutants cosmic-ray==8.7.0 coverage==7.17.3
exec .venv/bin/python scripts/mutants.py "$@"
