#!/usr/bin/env bash
# The loader on shards behind a slow link: six minutes on two quiet cores, 2 GB of disk.
# Photos of MIM_DATA_DIR where it is set, of the synthetic shop otherwise; arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 PYTHONPATH=.
PHOTOS=${MIM_DATA_DIR:+--photos $MIM_DATA_DIR/data/grocery/images/street}
RECORD=experiments/scale/remote
.venv/bin/python benchmarks/remote_shards.py $PHOTOS --rounds 3 --rows 12288 --samples-per-shard 192 --output $RECORD/results.json "$@" |
  tee $RECORD/table.md
.venv/bin/python experiments/refresh.py
