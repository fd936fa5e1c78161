#!/usr/bin/env bash
# Where titles help: few products with photos, all with titles. 20 arms; needs MIM_DATA_DIR (data/emoji,
# weights/mobilenetv2_100.safetensors).
#
#   SEEDS="1 2 3"   runs of an arm; each seed has families of its own with photos
#   ARMS="photos own composed artists shuffled"
#   STEPS=128           of 64 rows
source "$(dirname "$0")/../train_arms.sh"
RECORD=titles_emoji TABLES=${TABLES:-data/titles_emoji} EXTERNAL=${MIM_DATA_DIR:-external} STEPS=${STEPS:-128}
for seed in $SEEDS; do
  [ -f "$TABLES/$seed/shuffled.csv" ] || $PYTHON experiments/titles_emoji/make_tables.py "$TABLES/$seed" "$EXTERNAL/data/emoji" "$seed"
done

arm() { # <models> <tables of queries> [override] ...
  local models=$1 tables=$2
  shift 2
  $PYTHON -m mim_lightning.train -m seed="${SEEDS// /,}" model="$models" data.name="$tables" paths.runs="runs/$RECORD" \
    results_from=last trainer=cpu trainer.precision=32-true data=manifest data.num_workers=0 data.val_split=test \
    "data.folder=$TABLES/\${seed}/prepared/\${data.name}" "data.source.products=$TABLES/\${seed}/products.csv" \
    "data.source.queries=$TABLES/\${seed}/\${data.name}.csv" "data.source.segments=[toned,domain]" \
    data/sampling=weighted data.batch_size=64 data.rows_per_epoch=$((64 * STEPS)) trainer.max_epochs=1 \
    trainer.num_sanity_val_steps=0 callbacks.progress_bar=null encoder=mobilenetv2_tiny \
    "encoder.image.pretrained=$EXTERNAL/weights/mobilenetv2_100.safetensors" encoder.image.image_size=64 \
    "encoder.image.mean=[0.5,0.5,0.5]" "encoder.image.std=[0.5,0.5,0.5]" +encoder.image.model_kwargs.pad_type=same "$@"
}

for name in ${ARMS:-photos own composed artists shuffled}; do
  case $name in
    photos) arm 2tower,3tower photos-15,photos-5,photos-100 ;;
    own) arm 2tower,3tower own-15,own-5,own-100 ;;
    composed) arm 4tower composed-15,composed-5,composed-100 ;;
    artists) arm 2tower,3tower fluent3d-15,twemoji-15 ;;
    shuffled)
      arm 3tower shuffled-15 "data.source.products=$TABLES/\${seed}/shuffled.csv" \
        "data.source.queries=$TABLES/\${seed}/photos-15.csv"
      ;;
    *) echo "ARMS: no arm '$name'; there are photos own composed artists shuffled" >&2; exit 2 ;;
  esac
done
$PYTHON -m experiments.titles_emoji.report "experiments/$RECORD" "$EXTERNAL/data/emoji" "runs/$RECORD"/[234]tower-*
$PYTHON experiments/refresh.py
