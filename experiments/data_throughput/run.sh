#!/usr/bin/env bash
# The loader against others, prepare, and opening 400 million rows: a quarter of an hour on two cores, 3 GB of disk.
# Photos of MIM_DATA_DIR where it is set, of the synthetic shop otherwise.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 PYTHONPATH=.
PHOTOS=${MIM_DATA_DIR:+--photos $MIM_DATA_DIR/data/grocery/images/street}
RECORD=experiments/data_throughput
.venv/bin/python benchmarks/data.py $PHOTOS --output $RECORD/loading.json | tee $RECORD/loading.md
.venv/bin/python benchmarks/preparing.py $PHOTOS --output $RECORD/preparing.json | tee $RECORD/preparing.md
.venv/bin/python benchmarks/opening.py --output $RECORD/opening.json | tee $RECORD/opening.md
.venv/bin/python $RECORD/plan.py
.venv/bin/python experiments/refresh.py
