#!/usr/bin/env bash
# What makes a better model at a small budget: one change of the recipe at a time, chosen on folds of the training rows.
# Two to three minutes a run on one core. Needs MIM_DATA_DIR (data/grocery, data/emoji, weights/mobilenetv2_100.safetensors).
#
#   SETS="grocery grocery_apart emoji"  FOLDS="1 2 3"     see make_folds.py
#   ARMS="base frozen ..."   all are under `change` below; "ema+large" changes both, "epochs_12" and "stages_5" take any number
source "$(dirname "$0")/../train_arms.sh"
RECORD=recipes TABLES=${TABLES:-data/recipes} EXTERNAL=${MIM_DATA_DIR:-external} FOLDS=${FOLDS:-1 2 3}
ALL="base frozen last_n lora low_rate layer_decay ema minilm minilm_frozen small large gentle_crops colors plain negatives widths \
batch_256 batch_32 high_rate grouped long again long+enlarged epochs_12+enlarged long+stages_5+at_160"
[ -f "$TABLES/grocery_apart/fold-3.csv" ] || $PYTHON experiments/recipes/make_folds.py "$TABLES" "$EXTERNAL/data"

side_of() { [ "$1" = emoji ] && echo 64 || echo 96; } # <set>: of the images of the base

change() { # <name> <set>: the overrides of an arm
  local side
  side=$(side_of "$2")
  case $1 in
    base) ;;
    frozen) echo model.towers.query_image.train=frozen ;;
    last_n) echo model.towers.query_image.train=last_n ;;
    lora) echo model.towers.query_image.train=lora "model.lora.target_modules=[conv_pw,conv_pwl]" ;;
    low_rate) echo optim.lr_scales.towers.query_image.encoder=0.3 ;;
    layer_decay) echo optim.layer_decay=0.75 ;;
    ema) echo callbacks=ema callbacks.ema.decay=0.98 ;;
    minilm) echo encoder=mobilenetv2_minilm encoder.text.max_length=64 optim.lr_scales.towers.product_text.encoder=0.03 ;;
    minilm_frozen) echo encoder=mobilenetv2_minilm encoder.text.max_length=64 model.towers.product_text.train=frozen ;;
    small) echo encoder.image.image_size=$((side * 2 / 3 / 32 * 32)) ;;
    large) echo encoder.image.image_size=$((side * 4 / 3)) ;;
    gentle_crops) echo data.augment.min_scale=0.7 ;;
    colors) echo +data.augment.brightness=0.2 +data.augment.contrast=0.2 +data.augment.saturation=0.2 ;;
    plain) echo data.augment=null ;;
    negatives) echo data/sampling=hard_negatives trainer.check_val_every_n_epoch=1 ;; # mined in validations
    widths) echo "loss.widths={64:1.0}" ;;
    batch_256) echo data.batch_size=256 step.micro_batch_size=64 ;;
    batch_32) echo data.batch_size=32 ;;
    high_rate) echo optim.lr=2.0e-3 ;;
    grouped) echo data/sampling=grouped ;;
    long) echo trainer.max_epochs=6 ;;
    epochs_*) echo trainer.max_epochs="${1#epochs_}" ;;
    stages_*) echo model.towers.query_image.train=last_n model.towers.query_image.num_trained_layers="${1#stages_}" ;; # of 7
    enlarged) echo data.augment.image_size="$side" encoder.image.image_size=$((side * 4 / 3)) ;; # all but training
    at_160) echo data.augment.image_size=160 encoder.image.image_size=192 ;;
    at_192) echo data.augment.image_size=192 encoder.image.image_size=224 ;;
    again) echo "seed=$((100 + fold))" ;; # the base with other random numbers: what a run's chance does
    *) echo "ARMS: no arm '$1'; there are $ALL" >&2; exit 2 ;;
  esac
}

for set in ${SETS:-grocery grocery_apart emoji}; do
  for fold in $FOLDS; do
    for arm in ${ARMS:-$ALL}; do
      words=$(for part in ${arm//+/ }; do change "$part" "$set" || exit; done)
      $PYTHON -m mim_lightning.train run.id="$set-$arm-$fold" paths.runs="runs/$RECORD" experiment="${set%_apart}" model=4tower \
        data=manifest seed="$fold" "data.source.products=$TABLES/$set/products.csv" "data.source.queries=$TABLES/$set/fold-$fold.csv" \
        "data.folder=$TABLES/$set/prepared-$fold" data.batch_size=64 data.num_workers=0 trainer=cpu trainer.precision=32-true \
        trainer.max_epochs=3 "trainer.check_val_every_n_epoch=\${trainer.max_epochs}" results_from=last callbacks.progress_bar=null \
        encoder.image.image_size="$(side_of "$set")" $words
    done
  done
done
$PYTHON -m experiments.recipes.report "experiments/$RECORD" "runs/$RECORD"/*/
$PYTHON experiments/refresh.py
