#!/usr/bin/env bash
# Two, three and four towers on real grocery photos, equal numbers of epochs, three seeds: about an hour on two CPU cores.
# Needs MIM_DATA_DIR (data/grocery, weights/mobilenetv2_100.safetensors).
source "$(dirname "$0")/../train_arms.sh"
train_arms towers_grocery experiment=grocery_disjoint model=2tower,3tower,4tower
evaluate_seen towers_grocery
tables towers_grocery runs/towers_grocery/{2,3,4}tower-*
