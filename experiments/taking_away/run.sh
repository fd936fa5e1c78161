#!/usr/bin/env bash
# Words that take away: as a sentence, and subtracted; the drawn shop, three seeds, heads on a frozen image encoder: a few minutes
# on one core. Needs MIM_DATA_DIR (weights/mobilenetv2_100.safetensors).
#   SEEDS=1 EPOCHS=1 NUM_PHOTOS=20 RECORD=/tmp/record  a small trial
source "$(dirname "$0")/../train_arms.sh"
RUNS=${RUNS:-runs/taking_away}
RECORD=${RECORD:-experiments/taking_away}
mkdir -p "$RECORD"
indexes=()
for seed in $SEEDS; do
  told=$($PYTHON -m mim_lightning.train model=4tower trainer=cpu trainer.precision=32-true encoder=mobilenetv2_tiny \
    encoder.image.pretrained="${MIM_DATA_DIR:-external}/weights/mobilenetv2_100.safetensors" encoder.image.image_size=64 \
    model.towers.query_image.train=frozen data.augment=null data.feature_cache.enabled=true encoder.text.width=64 \
    encoder.text.num_layers=1 embed_dim=128 data.source.image_size=64 data.name=taking_away data.folder="$RUNS/data" \
    paths.runs="$RUNS/models" seed="$seed" data.batch_size=128 data.num_workers=0 trainer.max_epochs="${EPOCHS:-20}" \
    trainer.check_val_every_n_epoch="${EPOCHS:-20}" trainer.num_sanity_val_steps=0 callbacks.progress_bar=null \
    results_from=last | tee /dev/stderr)
  run=$(sed -n 's/^.*results: //p' <<< "$told")
  $PYTHON -m mim_lightning.build_index checkpoint="$run/checkpoints/last.ckpt" output="$RUNS/index-$seed" trainer=cpu index.kind=flat
  indexes+=("$RUNS/index-$seed")
done
$PYTHON experiments/taking_away/measure.py "$RECORD" --indexes "${indexes[@]}" ${NUM_PHOTOS:+--num-photos "$NUM_PHOTOS"}
$PYTHON experiments/refresh.py
