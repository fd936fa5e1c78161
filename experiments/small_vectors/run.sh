#!/usr/bin/env bash
# A 2-tower trained with and without widths in the loss, three seeds, and the curve of small vectors of each.
source "$(dirname "$0")/../train_arms.sh"
for widths in '{8: 1.0, 16: 1.0, 32: 1.0}' null; do
  train_arms small_vectors experiment=synthetic model=2tower trainer.max_epochs=12 trainer.check_val_every_n_epoch=12 \
    trainer.num_sanity_val_steps=0 trainer=cpu "loss.widths=$widths" 'callbacks.retrieval_eval.widths=[8,16,32]'
done
$PYTHON experiments/small_vectors/widths.py runs/small_vectors/*/
$PYTHON experiments/small_vectors/curves.py runs/small_vectors/*/
$PYTHON experiments/refresh.py
