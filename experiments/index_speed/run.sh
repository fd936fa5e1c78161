#!/usr/bin/env bash
# Our product index against plain FAISS, a million rows: half an hour to an hour on two CPU cores, 8 GiB of memory, 6 of disk.
# Arguments go to the benchmark; see --help; --rows 50000 takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
OMP_WAIT_POLICY=PASSIVE .venv/bin/python benchmarks/index_speed.py "$@"
.venv/bin/python experiments/index_speed/tables.py
.venv/bin/python experiments/refresh.py
