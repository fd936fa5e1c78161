#!/usr/bin/env bash
# Smaller and larger encoders at equal epochs: after towers_synthetic, an hour.
source "$(dirname "$0")/../train_arms.sh"
experiments/towers_synthetic/run.sh
train_arms encoder_size experiment=synthetic model=2tower,4tower encoder.image.width=128 encoder.text.width=64
train_arms encoder_size experiment=synthetic model=2tower,4tower encoder.image.width=384 encoder.text.width=256
tables encoder_size runs/towers_synthetic/[24]tower-* runs/encoder_size/[24]tower-*
