#!/usr/bin/env bash
# Image towers, text towers, both or neither with weights of their own: after towers_synthetic, an hour.
source "$(dirname "$0")/../train_arms.sh"
experiments/towers_synthetic/run.sh
train_arms tied_or_not experiment=synthetic model=4tower model.tied.product_image=null
train_arms tied_or_not experiment=synthetic model=4tower model.tied.query_text=null
train_arms tied_or_not experiment=synthetic model=4tower model.tied.product_image=null model.tied.query_text=null
tables tied_or_not runs/towers_synthetic/4tower-* runs/tied_or_not/4tower-* --directions image_to_image composed_to_product
