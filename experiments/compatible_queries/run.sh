#!/usr/bin/env bash
# A former 3-tower's index, searched by queries of a new 4-tower trained with and without its product vectors: three seeds
# at fifteen epochs.
source "$(dirname "$0")/../train_arms.sh"
RUNS=runs/compatible_queries
SMALL="experiment=synthetic trainer.max_epochs=15 trainer.check_val_every_n_epoch=15 encoder.image.image_size=64 trainer=cpu data.num_workers=0 paths.runs=$RUNS"
for seed in $SEEDS; do
  arm="$SMALL seed=$seed data.splits.fold=$((seed - 1))"
  vectors=$RUNS/vectors-$seed/product.parquet
  # another seed: towers that start from the same weights agree to some degree without the term
  $PYTHON -m mim_lightning.train $arm model=3tower seed=$((seed + 10)) run.id=old-$seed
  [ -f $vectors ] || $PYTHON -m mim_lightning.embed checkpoint=$RUNS/old-$seed/checkpoints/last.ckpt output=$RUNS/vectors-$seed trainer=cpu
  $PYTHON -m mim_lightning.train $arm model=4tower run.id=plain-$seed
  $PYTHON -m mim_lightning.train $arm model=4tower run.id=compatible-$seed data.vectors.product_old=$vectors \
    "+model.pairs.query_to_old={left: query, right: product_old}" \
    "+model.pairs.query_image_to_old={left: query_image, right: product_old}"
  for kind in plain compatible; do
    $PYTHON -m mim_lightning.evaluate checkpoint=$RUNS/$kind-$seed/checkpoints/last.ckpt \
      gallery_checkpoint=$RUNS/old-$seed/checkpoints/last.ckpt output=$RUNS/$kind-$seed/in_old_gallery trainer=cpu
  done
done
$PYTHON experiments/compatible_queries/tabulate.py $RUNS
tables compatible_queries $RUNS/plain-* $RUNS/compatible-* --directions query_to_product image_to_product image_to_image \
  text_to_product --first-only --labels plain compatible
