#!/usr/bin/env bash
# How fast are the weights of a checkpoint digested? Two minutes.
set -euo pipefail
cd "$(dirname "$0")/../../.."
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/fingerprints.py --output experiments/scale/fingerprints/results.json
.venv/bin/python experiments/scale/fingerprints/tables.py
.venv/bin/python experiments/refresh.py
