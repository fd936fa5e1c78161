#!/usr/bin/env bash
# Time and memory of evaluate, embed and build_index by the number of processes: a quarter of an hour on two quiet cores, 6 GB
# of memory. Arguments go to the benchmark, whose other measurements stay then: --rows 500 --processes 1 2 --commands embed.
set -euo pipefail
cd "$(dirname "$0")/../../.."
[ $# -gt 0 ] || rm -f experiments/scale/processes/results.json
OMP_NUM_THREADS=1 PYTHONPATH=. .venv/bin/python benchmarks/processes.py --output experiments/scale/processes/results.json "$@"
.venv/bin/python experiments/refresh.py
