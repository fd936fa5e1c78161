#!/usr/bin/env bash
# DDP and FSDP2 on 1, 2 and 4 processes of this machine: four minutes on two cores, 3 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/../../.."
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/engines.py --encoder tiny --rows 32 --rounds 2 --steps 6 \
  --output experiments/scale/engines/results.json --words model=3tower encoder.text.width=384 encoder.text.num_layers=12
.venv/bin/python experiments/refresh.py
