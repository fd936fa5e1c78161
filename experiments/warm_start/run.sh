#!/usr/bin/env bash
# Four towers from three towers' weights, and from nothing: after towers_synthetic, half an hour more.
source "$(dirname "$0")/../train_arms.sh"
experiments/towers_synthetic/run.sh
for seed in $SEEDS; do
  start=$(echo runs/towers_synthetic/3tower-*-seed"$seed"-*/checkpoints/last.ckpt)
  SEEDS=$seed train_arms warm_start experiment=synthetic model=4tower trainer.max_epochs=15 init_from="$start"
done
train_arms warm_start experiment=synthetic model=4tower trainer.max_epochs=45
evaluate_seen warm_start
tables warm_start runs/towers_synthetic/4tower-* runs/warm_start/4tower-* --directions image_to_image composed_to_product
