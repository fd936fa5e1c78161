# Sourced by the records' run.sh: train the same arms over three seeds, each with another fold of products.
#
#   train_arms <name of the record> <override> ...      overrides may hold Hydra choices: model=2tower,3tower
#   published_checkpoint <run>      the one of which its results are: best or last
#   evaluate_seen <name of the record>                  its runs again, on queries of products that they were trained on
#
# Finished runs are not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=.venv/bin/python
SEEDS=${SEEDS:-1 2 3}

train_arms() {
  local record=$1
  shift
  for seed in $SEEDS; do
    $PYTHON -m mim_lightning.train -m seed="$seed" data.splits.fold=$((seed - 1)) paths.runs="runs/$record" "$@"
  done
}

published_checkpoint() {
  echo "$1/checkpoints/$(sed -n 's/^results_from: //p' "$1/config.yaml").ckpt"
}

evaluate_seen() {
  local record=$1 run
  for run in "runs/$record"/*/; do
    [ -f "$run/results.json" ] && [ ! -f "$run/seen/results.json" ] || continue
    $PYTHON -m mim_lightning.evaluate checkpoint="${run}checkpoints/last.ckpt" split=val_seen output="${run}seen"
  done
}

tables() { # <name of the record> <folder of a run> ... [option of tables.py] ...
  local record=$1
  shift
  $PYTHON experiments/tables.py "experiments/$record" "$@"
  $PYTHON experiments/plot_differences.py "experiments/$record"
  $PYTHON experiments/refresh.py
}
