#!/usr/bin/env bash
# Side by side with what people use instead: 6 arms and the untrained model, 3 seeds, about 35 minutes on one core. Needs
# MIM_DATA_DIR (data/emoji, weights/mobilenetv2_100.safetensors). The neighbours are no dependencies of this project: they are
# put in a folder of their own, without theirs, of which this environment has newer versions.
#
#   SEEDS="1 2 3"
#   ARMS="ours open"    those whose names begin so; default: all
#   STEPS=128           of 64 rows
#   CONFIG="optim.lr=3e-4 data.val_split=val" RUNS=runs/neighbours_slow RECORD=/tmp/slow     another rate, on the split val
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
PYTHON=.venv/bin/python RECORD=${RECORD:-experiments/neighbours} RUNS=${RUNS:-runs/neighbours} PEERS=${PEERS:-build/neighbours}
if [ ! -d "$PEERS/oml" ]; then
  # open-metric-learning imports gdown and validators wherever it is entered
  $PYTHON -m pip install --quiet --no-deps --target "$PEERS" 'sentence-transformers==6.2.0' 'open-metric-learning==4.0.0' \
    'gdown==6.5.1' 'beautifulsoup4==4.15.0' 'soupsieve==4.1.3' 'validators==0.36.0'
fi
export PYTHONPATH=$PEERS${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$RECORD"
$PYTHON -m benchmarks.neighbours --output "$RUNS" --seeds ${SEEDS:-1 2 3} --steps "${STEPS:-128}" \
  ${ARMS:+--arms $ARMS} ${CONFIG:+--config $CONFIG} ${FAMILIES:+--families "$FAMILIES"}
$PYTHON -m experiments.neighbours.report "$RECORD" "$RUNS"
$PYTHON experiments/refresh.py
