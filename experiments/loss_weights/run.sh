#!/usr/bin/env bash
# Each pair of the 4-tower removed, and the pairs with text made lighter and heavier, at 15 epochs: an hour on two cores.
source "$(dirname "$0")/../train_arms.sh"
ARM="experiment=synthetic trainer.max_epochs=15 model=4tower"
PAIRS="query_image_product_image query_image_product_text product_image_product_text query_text_product_image
  query_text_product_text query_product"
train_arms half_budget $ARM
for pair in $PAIRS; do
  train_arms loss_weights $ARM model.pairs."$pair".weight=0.0
done
for weight in 0.3 3.0; do
  train_arms loss_weights $ARM model.pairs.query_text_product_image.weight=$weight \
    model.pairs.query_text_product_text.weight=$weight model.pairs.query_product.weight=$weight
  train_arms loss_weights $ARM model.pairs.query_image_product_text.weight=$weight \
    model.pairs.product_image_product_text.weight=$weight
done
tables loss_weights runs/half_budget/4tower-* runs/loss_weights/4tower-* --directions image_to_image composed_to_product --first-only
