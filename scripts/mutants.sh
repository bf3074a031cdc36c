#!/usr/bin/env bash
# Mutation test of the core, the schedule, packing and scoring; arguments: scripts/mutants.py.
# usage: bash scripts/mutants.sh [--minutes=60] [--seed=0] [--seconds=30] [FILE[:LINE] ...]
set -euo pipefail
. "$(dirname "$0")/environment.sh"
make_venv
install_for_tests
install_into_venv mutants cosmic-ray==8.7.0 coverage==7.17.3
exec .venv/bin/python scripts/mutants.py "$@"
