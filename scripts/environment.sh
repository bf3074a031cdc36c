# Makes or reuses .venv and installs into it; sourced by the other scripts.
# usage: . scripts/environment.sh; install_into_venv LABEL PIP_ARGUMENTS...

cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_venv() {
  if [ ! -x .venv/bin/python ]; then
    local python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed (set PYTHON)" >&2
      exit 1
    }
    "$python" -m venv .venv || {
      echo "error: $python -m venv .venv failed; on Debian: apt-get install python3-venv" >&2
      exit 1
    }
  fi
}

# The package with all that its tests need.
install_for_tests() {
  install_into_venv package -e .
  # torch first and alone: a build for the CPU is all the tests need, and it must not be replaced.
  install_into_venv oracle torch==2.13.0
  install_into_venv test -e '.[test]'
}

# Installs once: a stamp keeps the arguments and setup.py that the environment was made with.
install_into_venv() {
  local label="$1" stamp=".venv/installed-$1"
  shift
  local wanted
  wanted="$* $(cksum setup.py)"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  # The packages of other labels differ too much in size to say how long they take.
  echo "installing $label $([ "$label" != package ] || echo "(a minute or two) ")..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" || {
    echo "error: installing $label failed: pip install $*" >&2
    exit 1
  }
  echo "$wanted" > "$stamp"
}
