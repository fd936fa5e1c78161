#!/usr/bin/env bash
# Loss by quantization and speed of ONNX Runtime: four exports of one checkpoint, about five minutes on two cores.
# Trains the checkpoint first if there is none, see grocery_checkpoint.sh; arguments go to benchmarks/encoding.py.
source "$(dirname "$0")/../grocery_checkpoint.sh"
grocery_checkpoint
EXPORTS=runs/rounded_weights
for precision in float32 float16 bfloat16 int8; do
  onnx=$([ $precision = float32 ] && echo true || echo false)
  $PYTHON -m mim_lightning.export checkpoint="$CHECKPOINT" output="$EXPORTS/$precision" precision=$precision onnx="$onnx" \
    device=cpu
done
$PYTHON experiments/rounded_weights/tables.py "$EXPORTS"
$PYTHON benchmarks/encoding.py --export "$EXPORTS/float32" --photos "$PHOTOS" "$@" > experiments/rounded_weights/onnx.md
$PYTHON experiments/refresh.py
