#!/usr/bin/env bash
# A recipe for a few hundred products beside that of grocery, on small parts of emoji and grocery. Needs MIM_DATA_DIR
# (data/emoji, data/grocery, weights/mobilenetv2_100.safetensors).
#
#   SUBSETS="1 2 3 4"   of each set: another random part each
#   SETS="emoji grocery"
source "$(dirname "$0")/../train_arms.sh"
RECORD=small_catalog TABLES=${TABLES:-data/small_catalog} EXTERNAL=${MIM_DATA_DIR:-external} SUBSETS=${SUBSETS:-1 2 3 4}
num_subsets=$(printf "%s\n" $SUBSETS | sort -n | tail -1)
[ -d "$TABLES/grocery-$num_subsets" ] || $PYTHON experiments/small_catalog/make_subsets.py "$TABLES" "$EXTERNAL/data" "$num_subsets"

train() { # <name of the recipe> <2tower ...> <subset> <override> ...
  local recipe=$1 model=$2 subset=$3
  shift 3
  $PYTHON -m mim_lightning.train run.id="$recipe-$model-$subset" paths.runs="runs/$RECORD" model="$model" \
    results_from=last trainer=cpu trainer.precision=32-true "data.source.products=$TABLES/$subset/products.csv" \
    "data.source.queries=$TABLES/$subset/queries.csv" "data.folder=$TABLES/$subset/prepared" data.num_workers=0 \
    "data.feature_cache.folder=$TABLES/features" callbacks.progress_bar=null "$@"
}

for set in ${SETS:-emoji grocery}; do
  for k in $SUBSETS; do
    for model in 2tower 3tower 4tower; do
      train small_catalog $model "$set-$k" experiment=small_catalog
    done
    train grocery 4tower "$set-$k" experiment=grocery data=manifest data.batch_size=64
  done
done
$PYTHON experiments/small_catalog/report.py "experiments/$RECORD" "runs/$RECORD"/*-[234]tower-*
$PYTHON experiments/refresh.py
