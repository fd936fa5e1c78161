#!/usr/bin/env bash
# The search service under 32 clients, and the same search under LitServe: about eight minutes on two cores.
# The checkpoint of `experiment=grocery_best` is trained first if there is none; arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=PASSIVE
INDEX=runs/serving_speed/index
if [ ! -e "$INDEX/card.json" ]; then
  .venv/bin/python -m mim_lightning.train experiment=grocery_best
  .venv/bin/python -m mim_lightning.build_index checkpoint="$(echo runs/4tower-grocery-*/checkpoints/best.ckpt)" output="$INDEX"
fi
.venv/bin/python benchmarks/serving.py --index "$INDEX" --photos "$MIM_DATA_DIR/data/grocery/images/street" "$@" \
  > experiments/serving_speed/table.md
.venv/bin/python experiments/refresh.py
