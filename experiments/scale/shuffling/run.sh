#!/usr/bin/env bash
# How well are rows shuffled, and what does the plan of an epoch take? Two minutes, 1 GB of temporary disk.
set -euo pipefail
cd "$(dirname "$0")/../../.."
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/shuffling.py --output experiments/scale/shuffling/results.json
.venv/bin/python experiments/scale/shuffling/tables.py
.venv/bin/python experiments/refresh.py
