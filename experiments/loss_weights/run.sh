#!/usr/bin/env bash
# Each pair of the 4-tower removed, and the pairs with text made lighter and heavier: after towers_synthetic, some hours.
source "$(dirname "$0")/../train_arms.sh"
experiments/towers_synthetic/run.sh
PAIRS="query_image_product_image query_image_product_text product_image_product_text query_text_product_image
  query_text_product_text query_product"
for pair in $PAIRS; do
  train_arms loss_weights experiment=synthetic model=4tower model.pairs."$pair".weight=0.0
done
for weight in 0.3 3.0; do
  train_arms loss_weights experiment=synthetic model=4tower model.pairs.query_text_product_image.weight=$weight \
    model.pairs.query_text_product_text.weight=$weight model.pairs.query_product.weight=$weight
  train_arms loss_weights experiment=synthetic model=4tower model.pairs.query_image_product_text.weight=$weight \
    model.pairs.product_image_product_text.weight=$weight
done
tables loss_weights runs/towers_synthetic/4tower-* runs/loss_weights/4tower-* --directions image_to_image composed_to_product
