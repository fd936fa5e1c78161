#!/usr/bin/env bash
# Fusion weights swept after training, without embedding again: after towers_synthetic, a minute.
source "$(dirname "$0")/../train_arms.sh"
experiments/towers_synthetic/run.sh
$PYTHON experiments/fusion_weights/sweep.py experiments/fusion_weights runs/towers_synthetic/4tower-*
$PYTHON experiments/refresh.py
