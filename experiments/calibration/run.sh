#!/usr/bin/env bash
# The default run (made if it is missing), an index of its catalog, and the truth of a calibration: a minute beyond the run.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
$PYTHON -m mim_lightning.train
checkpoint=$(ls runs/4tower-synthetic-seed1-*/checkpoints/best.ckpt | head -1)
$PYTHON -m mim_lightning.build_index checkpoint="$checkpoint" output=runs/calibration/index index.kind=flat
$PYTHON benchmarks/calibration.py --index runs/calibration/index --output experiments/calibration/results.json
$PYTHON -m mim_lightning.calibrate index=runs/calibration/index
cp runs/calibration/index/calibration.svg experiments/calibration/
$PYTHON experiments/refresh.py
