#!/usr/bin/env bash
# Do one process and two end with equal weights? 105 steps in float32 and float64, with and without a row left over in the last batch:
# about six minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
RUNS=runs/world_size
for queries in 7 8; do # 427 rows: batches of 64 and one of 43, which two processes fill up; 488: one of 40
  for precision in 32-true 64-true; do
    for devices in 1 2; do
      .venv/bin/python -m mim_lightning.train data.source.num_products=61 data.source.train_queries_per_product=$queries \
        data.batch_size=64 data.num_workers=0 data.folder=$RUNS/data-$queries encoder.image.image_size=32 encoder.image.width=64 \
        encoder.text.width=32 encoder.text.num_layers=1 embed_dim=16 trainer=cpu trainer.max_epochs=15 trainer.devices=$devices \
        trainer.precision=$precision results_from=last paths.runs=$RUNS/$queries/$precision/$devices
    done
  done
done
.venv/bin/python experiments/world_size/tables.py $RUNS
.venv/bin/python experiments/refresh.py
