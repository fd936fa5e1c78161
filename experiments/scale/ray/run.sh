#!/usr/bin/env bash
# What does a lost node cost a preparation by Ray? Three minutes on two quiet cores, three Ray nodes on this machine.
set -euo pipefail
cd "$(dirname "$0")/../../.."
OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 PYTHONPATH=. .venv/bin/python benchmarks/lost_node.py --output experiments/scale/ray/results.json
.venv/bin/python experiments/refresh.py
