#!/usr/bin/env bash
# Hard negatives off, on, and on without a guard, at equal steps, in a shop that sells every fourth product twice: four
# minutes of one core.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
record=experiments/hard_negatives shop=${SHOP:-runs/hard_negatives/shop} runs=${RUNS:-runs/hard_negatives}
[ -f "$shop/queries.csv" ] || $PYTHON $record/relisted.py write "$shop"
train() { # <arm> <override> ...
  $PYTHON -m mim_lightning.train -m seed="${SEEDS:-1,2,3}" paths.runs="$runs/$1" data=manifest data.name=relisted \
    data.source.products="$shop/products.csv" data.source.queries="$shop/queries.csv" data.folder="$shop/prepared" \
    model=3tower monitor=val/image_to_product/hit@1 results_from=last encoder.image.image_size=32 encoder.image.width=64 \
    encoder.text.width=64 encoder.text.num_layers=1 embed_dim=64 data.batch_size=32 data.augment.min_scale=0.7 optim.lr=3e-3 \
    data.num_workers=0 trainer.max_epochs=12 trainer.check_val_every_n_epoch=3 callbacks.tracked_queries=null logger=csv \
    callbacks.progress_bar=null "${@:2}"
}
on="data/sampling=hard_negatives data.sampling.every_n_epochs=3 data.sampling.first_epoch=3"
train shuffled
train mined $on data.sampling.mining.max_relative_score=0.95,null data.sampling.mining.skip_duplicates=false
of() { grep -l "max_relative_score: $1" "$runs"/mined/3tower-*/config.yaml | xargs -n 1 dirname; }
$PYTHON experiments/tables.py $record "$runs"/shuffled/3tower-* $(of 0.95) $(of null) --first-only \
  --directions image_to_product image_to_image --labels shuffled guarded unguarded
sed -i 's/never trained on/trained on/' $record/{table,summary,differences}.md $record/results.csv # every product is
$PYTHON experiments/plot_differences.py $record
$PYTHON $record/relisted.py count "$shop" $(of 0.95 | sed s/^/guarded=/) $(of null | sed s/^/unguarded=/)
$PYTHON experiments/refresh.py
