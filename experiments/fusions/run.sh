#!/usr/bin/env bash
# Kinds of fusion compared on three sets of data: three short trainings (45 CPU minutes), then no embedding again.
source "$(dirname "$0")/../train_arms.sh"
data=${MIM_DATA_DIR:-external}
image="encoder.image.pretrained=$data/weights/mobilenetv2_100.safetensors encoder.image.image_size=64
  encoder.image.mean=[0.5,0.5,0.5] encoder.image.std=[0.5,0.5,0.5] +encoder.image.model_kwargs.pad_type=same"
train="$PYTHON -m mim_lightning.train model=4tower seed=1 results_from=last trainer.num_sanity_val_steps=0"
$train run.id=fusions-grocery experiment=grocery_disjoint encoder.image.image_size=64 trainer.max_epochs=4 \
  trainer.check_val_every_n_epoch=4
$train run.id=fusions-synthetic experiment=synthetic trainer.max_epochs=15 trainer.check_val_every_n_epoch=15
$train run.id=fusions-emoji data=manifest data.name=emoji data.source.products="$data/data/emoji/products.csv" \
  data.source.queries="$data/data/emoji/queries.csv" data.batch_size=64 encoder=mobilenetv2_tiny $image \
  trainer.max_epochs=3 trainer.check_val_every_n_epoch=3
$PYTHON experiments/fusions/kinds.py experiments/fusions grocery=runs/fusions-grocery \
  synthetic=runs/fusions-synthetic emoji=runs/fusions-emoji
$PYTHON experiments/refresh.py
