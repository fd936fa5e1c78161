#!/usr/bin/env bash
# The search service under 32 clients, and the same search under LitServe: about eight minutes on two cores.
# Trains the checkpoint first if there is none, see grocery_checkpoint.sh; arguments go to the benchmark.
source "$(dirname "$0")/../grocery_checkpoint.sh"
grocery_checkpoint
INDEX=runs/serving_speed/index
[ -e "$INDEX/card.json" ] || $PYTHON -m mim_lightning.build_index checkpoint="$CHECKPOINT" output="$INDEX"
$PYTHON benchmarks/serving.py --index "$INDEX" --photos "$PHOTOS" "$@" > experiments/serving_speed/table.md
$PYTHON experiments/refresh.py
