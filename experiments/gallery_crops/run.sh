#!/usr/bin/env bash
# Pictures of a catalog with clutter around: whole, and with the best of several crops. Emoji, a head on a frozen image encoder: a
# few minutes on one core. Needs MIM_DATA_DIR (data/emoji, weights/mobilenetv2_100.safetensors).
#   NUM_PRODUCTS=40 EPOCHS=1 RECORD=/tmp/record  a small trial
source "$(dirname "$0")/../train_arms.sh"
DATA=${MIM_DATA_DIR:-external}
EMOJI=$DATA/data/emoji
RUNS=${RUNS:-runs/gallery_crops}
RECORD=${RECORD:-experiments/gallery_crops}
mkdir -p "$RUNS" "$RECORD"
$PYTHON experiments/gallery_crops/clutter.py "$EMOJI" "$RUNS/data" ${NUM_PRODUCTS:+--num-products "$NUM_PRODUCTS"}
told=$($PYTHON -m mim_lightning.train model=2tower trainer=cpu trainer.precision=32-true encoder=mobilenetv2_tiny \
  encoder.image.pretrained="$DATA/weights/mobilenetv2_100.safetensors" encoder.image.image_size=128 embed_dim=128 \
  model.towers.query_image.train=frozen data.augment=null data.feature_cache.enabled=true data=manifest data.name=emoji \
  data.source.products="$EMOJI/products.csv" data.source.queries="$RUNS/data/queries.csv" data.folder="$RUNS/emoji" \
  paths.runs="$RUNS/models" seed=1 trainer.max_epochs="${EPOCHS:-20}" trainer.check_val_every_n_epoch="${EPOCHS:-20}" \
  data.batch_size=256 data.num_workers=0 trainer.num_sanity_val_steps=0 callbacks.progress_bar=null results_from=last \
  | tee /dev/stderr)
CHECKPOINT=$(sed -n 's/^.*results: //p' <<< "$told")/checkpoints/last.ckpt
index() { # <name> <table> [option] ...
  local name=$1 table=$2
  shift 2
  $PYTHON -m mim_lightning.build_index checkpoint="$CHECKPOINT" output="$RUNS/$name" trainer=cpu data=manifest \
    data.source.products="$RUNS/data/$table.csv" data.source.queries=null data.folder="$RUNS/data/$table" index.kind=flat \
    data.shards.max_image_side=256 data.num_workers=0 embeddings="$RUNS/embeddings-$table" "$@"
}
index whole clutter
index grid2 clutter crops.grid=2
index grid3 clutter crops.grid=3
index grid4 clutter crops.grid=4
index boxes clutter crops.boxes=parts
index clean clean
index clean3 clean crops.grid=3
$PYTHON experiments/gallery_crops/measure.py "$RECORD" --checkpoint "$CHECKPOINT" --emoji "$EMOJI" --indexes \
  "clutter: whole picture=$RUNS/whole" "clutter: 2 x 2 crops=$RUNS/grid2" "clutter: 3 x 3 crops=$RUNS/grid3" \
  "clutter: 4 x 4 crops=$RUNS/grid4" "clutter: the product's box=$RUNS/boxes" "clean: whole picture=$RUNS/clean" \
  "clean: 3 x 3 crops=$RUNS/clean3"
$PYTHON experiments/refresh.py
