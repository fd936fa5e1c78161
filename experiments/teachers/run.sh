#!/usr/bin/env bash
# A small student alone, and with the vectors of a larger teacher that was trained as long: three seeds of tiny towers, a
# quarter of an hour on a CPU core. EPOCHS=10 trains the students a third as long.
source "$(dirname "$0")/../train_arms.sh"
RUNS=runs/teachers
export MIM_PREPARED_DIR=${MIM_PREPARED_DIR:-data}/teachers # a shop of its own size
COMMON="model=4tower experiment=synthetic data.source.num_products=150 data.source.train_queries_per_product=4 data.source.image_size=64
  encoder.image.image_size=32 data.batch_size=32 trainer.check_val_every_n_epoch=\${trainer.max_epochs} trainer=cpu data.num_workers=0 paths.runs=$RUNS"
STUDENT="encoder.image.width=64 trainer.max_epochs=${EPOCHS:-30}"
for seed in $SEEDS; do
  arm="$COMMON seed=$seed data.splits.fold=$((seed - 1))"
  folder=$RUNS/vectors-$seed
  $PYTHON -m mim_lightning.train $arm encoder.image.width=192 trainer.max_epochs=30 run.id=teacher-$seed
  embed="$PYTHON -m mim_lightning.embed checkpoint=$RUNS/teacher-$seed/checkpoints/last.ckpt output=$folder trainer=cpu"
  [ -f $folder/product.parquet ] || $embed
  [ -f $folder/query-train.parquet ] || $embed tower=query split=train
  $PYTHON -m mim_lightning.train $arm $STUDENT run.id=alone-$seed
  for loss in relational cosine; do
    $PYTHON -m mim_lightning.train $arm $STUDENT run.id=$loss-$seed data.vectors.product_teacher=$folder/product.parquet \
      data.vectors.query_teacher=$folder/query-train.parquet \
      "+model.pairs.product_teacher={left: product, right: product_teacher, loss: $loss}" \
      "+model.pairs.query_teacher={left: query, right: query_teacher, loss: $loss}"
  done
done
tables teachers $RUNS/alone-* $RUNS/relational-* $RUNS/cosine-* $RUNS/teacher-* --directions query_to_product \
  image_to_product image_to_image --first-only --labels alone relational cosine teacher
