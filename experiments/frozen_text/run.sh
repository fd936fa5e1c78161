#!/usr/bin/env bash
# Three towers on grocery photos with a frozen pretrained text encoder: after towers_grocery, an hour more.
# Needs MIM_DATA_DIR (data/grocery, weights/mobilenetv2_100.safetensors).
source "$(dirname "$0")/../train_arms.sh"
experiments/towers_grocery/run.sh
train_arms frozen_text experiment=grocery_disjoint model=3tower encoder=mobilenetv2_minilm encoder.text.max_length=64 \
  model.towers.product_text.train=frozen
evaluate_seen frozen_text
tables frozen_text runs/towers_grocery/[23]tower-* runs/frozen_text/3tower-* --labels 2tower 3tower "3tower, MiniLM frozen"
