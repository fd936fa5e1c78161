#!/usr/bin/env bash
# No composed rows, rows composed of variants, and real ones; evaluated on real ones; three seeds, on
# features of a frozen image encoder: a few minutes on one core.
source "$(dirname "$0")/../train_arms.sh"
RECORD=variants_to_words TABLES=${TABLES:-data/variants_to_words} EXTERNAL=${MIM_DATA_DIR:-external}
[ -f "$TABLES/shop/plain.csv" ] || $PYTHON experiments/variants_to_words/make_tables.py "$TABLES" "$EXTERNAL/data/emoji"
COMMON="model=4tower results_from=last trainer=cpu trainer.precision=32-true data=manifest data.num_workers=0
  encoder=mobilenetv2_tiny encoder.image.pretrained=$EXTERNAL/weights/mobilenetv2_100.safetensors encoder.image.image_size=64
  model.towers.query_image.train=frozen data.augment=null data.feature_cache.enabled=true
  data.feature_cache.folder=$TABLES/features encoder.text.width=64 encoder.text.num_layers=1 embed_dim=128 data.batch_size=128
  data.rows_per_epoch=3072 trainer.max_epochs=8 trainer.check_val_every_n_epoch=8 trainer.num_sanity_val_steps=0
  callbacks.progress_bar=null"

arm() { # <shop|emoji> <arm> <table of queries> <override> ...
  local set=$1 name=$2 queries=$3
  shift 3
  $PYTHON -m mim_lightning.train -m seed="${SEEDS// /,}" paths.runs="runs/$RECORD" $COMMON "data.name=$set-$name" \
    "data.source.products=$TABLES/$set/products.csv" "data.source.queries=$TABLES/$set/$queries.csv" "$@"
}

if [[ ${SETS:-shop emoji} == *shop* ]]; then
  arm shop plain plain
  arm shop generated plain data.compose=style:colour:pattern
  arm shop other_words plain \
    'data.compose={columns: "style:colour:pattern", templates: ["make it {value}", "rather {value}", "{value} instead"]}'
  arm shop real real
fi
if [[ ${SETS:-shop emoji} == *emoji* ]]; then
  arm emoji plain plain data.val_split=test
  arm emoji generated plain data.val_split=test \
    'data.compose={columns: "style:tone:gender", templates: ["{value}"], rows_per_product: 2}'
  arm emoji real real data.val_split=test
fi
for set in ${SETS:-shop emoji}; do
  runs=() labels=()
  for name in plain generated other_words real; do
    [ -d "${MIM_PREPARED_DIR:-data}/$set-$name" ] || continue
    runs+=("runs/$RECORD/"4tower-"$set-$name"-seed*) labels+=("$name")
  done
  mkdir -p "experiments/$RECORD/$set"
  tables "$RECORD/$set" "${runs[@]}" --labels "${labels[@]}" --first-only --directions composed_to_other_product image_to_image
done
