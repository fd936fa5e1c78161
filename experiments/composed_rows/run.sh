#!/usr/bin/env bash
# Reference products on and off in catalogs of three sizes, three seeds, on features of a frozen image encoder: twelve minutes of
# one core.
source "$(dirname "$0")/../train_arms.sh"
FROZEN="experiment=synthetic model=4tower trainer=cpu trainer.precision=32-true encoder=mobilenetv2_tiny
  encoder.image.pretrained=${MIM_DATA_DIR:-external}/weights/mobilenetv2_100.safetensors encoder.image.image_size=64
  model.towers.query_image.train=frozen data.augment=null data.feature_cache.enabled=true encoder.text.width=64
  encoder.text.num_layers=1 embed_dim=128 data.source.image_size=64 data.source.val_queries_per_product=1 data.batch_size=128
  data.num_workers=0 data.rows_per_epoch=3072 trainer.max_epochs=8 trainer.check_val_every_n_epoch=8
  trainer.num_sanity_val_steps=0 callbacks.progress_bar=null"
declare -A QUERIES=([240]=6 [960]=3 [2400]=2) # for training, a product
for size in ${SIZES:-240 960 2400}; do
  $PYTHON -m mim_lightning.train -m seed="${SEEDS// /,}" paths.runs="runs/composed_rows/$size" $FROZEN data.name="synthetic-$size" \
    data.source.num_products="$size" data.source.train_queries_per_product="${QUERIES[$size]}" data.reference_products=false,true
done
$PYTHON experiments/composed_rows/positives.py experiments/composed_rows
runs_with() { # <size> <false|true>
  grep -l "reference_products: $2" "runs/composed_rows/$1"/4tower-*/config.yaml | xargs -n1 dirname
}
for size in ${SIZES:-240 960 2400}; do
  mkdir -p "experiments/composed_rows/$size"
  tables "composed_rows/$size" $(runs_with "$size" false) $(runs_with "$size" true) --labels off on \
    --directions image_to_image image_to_product composed_to_product composed_to_other_product
done
