#!/usr/bin/env bash
# What does it cost to add 1 % to prepared data and to an index? Five minutes of CPU.
set -euo pipefail
cd "$(dirname "$0")/../../.."
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/growing.py --output experiments/scale/growing/results.json
.venv/bin/python benchmarks/growing_memory.py --output experiments/scale/growing/memory.json
.venv/bin/python experiments/scale/growing/tables.py
.venv/bin/python experiments/refresh.py
