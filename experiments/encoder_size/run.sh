#!/usr/bin/env bash
# Smaller and larger encoders at 15 epochs: half an hour on two cores.
source "$(dirname "$0")/../train_arms.sh"
ARM="experiment=synthetic trainer.max_epochs=15 model=2tower,4tower"
train_arms half_budget $ARM
train_arms encoder_small $ARM encoder.image.width=128 encoder.text.width=64
train_arms encoder_large $ARM encoder.image.width=384 encoder.text.width=256
tables encoder_size runs/{encoder_small,half_budget,encoder_large}/2tower-* \
  runs/{encoder_small,half_budget,encoder_large}/4tower-* \
  --labels "2tower, 128" "2tower, 256" "2tower, 384" "4tower, 128" "4tower, 256" "4tower, 384"
