#!/usr/bin/env bash
# Training against other frameworks: eight minutes on two CPU cores, 15 GiB of memory, photos in MIM_DATA_DIR.
# STEPS="minilm engine curve" are further comparisons, eight minutes, four and five; the curve takes 17 GiB.
# sentence-transformers is no dependency of this project: it is put in a folder of its own, without its dependencies.
# On a GPU, besides: python -m benchmarks.train --device cuda --batch-size 256 --batches 8 --workers 8
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=PASSIVE # arms that wait must not spin
RECORD=experiments/train_throughput
SCRATCH=${SCRATCH:-/tmp/train_throughput}
PEERS=$SCRATCH/peers
if [ ! -d "$PEERS/sentence_transformers" ]; then
  .venv/bin/python -m pip install --quiet --no-deps --target "$PEERS" 'sentence-transformers==6.2.0'
fi
export PYTHONPATH=$PEERS${PYTHONPATH:+:$PYTHONPATH}
TINY="experiment=grocery model=4tower"
train() { .venv/bin/python -m benchmarks.train --scratch "$SCRATCH" "$@"; }
# STEPS=tiny MORE=--more adds rounds to those of the record
for step in ${STEPS:-tiny}; do
  case $step in
    minilm) words=(--batch-size 16 --batches 2 --rounds "${ROUNDS:-5}" ${MORE:-}) ;;
    tiny) words=(--config $TINY --batch-size 16 --batches 2 --rounds "${ROUNDS:-5}" ${MORE:-}) ;;
    engine) words=(--config $TINY --arms ours 'bare loop' 'plain Lightning, our collate' --batch-size 64 --batches 4
      --rounds "${ROUNDS:-10}" ${MORE:-}) ;;
    curve) words=(--config $TINY --curve 32 128 512 --micro-batch-size 64) ;;
  esac
  train "${words[@]}" --output "$RECORD/$step.json" | tee "$RECORD/$step.md"
  [ "$step" != curve ] || .venv/bin/python "$RECORD/plot_curve.py"
done
.venv/bin/python experiments/refresh.py
