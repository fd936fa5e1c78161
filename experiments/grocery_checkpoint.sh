# Sourced by the records' run.sh: the checkpoint of `experiment=grocery_best`, trained first if there is none.
#
#   grocery_checkpoint          sets CHECKPOINT, unless the environment names one, and PHOTOS
#
# Needs MIM_DATA_DIR (data/grocery, weights/mobilenetv2_100.safetensors); training takes 14 minutes on two busy cores.
source "$(dirname "${BASH_SOURCE[0]}")/train_arms.sh"
export OMP_WAIT_POLICY=PASSIVE

grocery_checkpoint() {
  PHOTOS=${MIM_DATA_DIR:-external}/data/grocery/images/street
  [ -n "${CHECKPOINT:-}" ] && return
  local told run
  # a finished run returns at once, an interrupted one resumes; both print their folder last
  told=$($PYTHON -m mim_lightning.train experiment=grocery_best | tee /dev/stderr)
  run=$(sed -n 's/^.*results: //p' <<< "$told")
  CHECKPOINT=$(published_checkpoint "$run")
}
