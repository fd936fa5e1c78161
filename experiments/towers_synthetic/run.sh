#!/usr/bin/env bash
# Two, three and four towers on the synthetic shop, equal numbers of epochs, three seeds: about half an hour on two CPU cores.
source "$(dirname "$0")/../train_arms.sh"
train_arms towers_synthetic experiment=synthetic model=2tower,3tower,4tower
evaluate_seen towers_synthetic
tables towers_synthetic runs/towers_synthetic/{2,3,4}tower-*
.venv/bin/python -m mim_lightning.plot runs/towers_synthetic/{2,3,4}tower-* --output runs/towers_synthetic/figures --only curves,hits --direction image_to_image
.venv/bin/python -m mim_lightning.plot runs/towers_synthetic/4tower-*-seed1-* --output runs/towers_synthetic/figures --only map
