#!/usr/bin/env bash
# Image towers, text towers, both or neither untied, at 15 epochs: twenty minutes on two cores.
source "$(dirname "$0")/../train_arms.sh"
ARM="experiment=synthetic trainer.max_epochs=15 model=4tower"
train_arms half_budget $ARM
train_arms tied_or_not $ARM model.tied.product_image=null
train_arms tied_or_not $ARM model.tied.query_text=null
train_arms tied_or_not $ARM model.tied.product_image=null model.tied.query_text=null
tables tied_or_not runs/half_budget/4tower-* runs/tied_or_not/4tower-* --directions image_to_image composed_to_product --first-only
