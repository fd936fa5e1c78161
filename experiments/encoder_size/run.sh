#!/usr/bin/env bash
# Smaller and larger encoders at 15 epochs: half an hour on two cores.
source "$(dirname "$0")/../train_arms.sh"
ARM="experiment=synthetic trainer.max_epochs=15 model=2tower,4tower"
train_arms half_budget $ARM
train_arms encoder_size $ARM encoder.image.width=128 encoder.text.width=64
train_arms encoder_size $ARM encoder.image.width=384 encoder.text.width=256
tables encoder_size runs/half_budget/[24]tower-* runs/encoder_size/[24]tower-*
