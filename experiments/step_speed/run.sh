#!/usr/bin/env bash
# A step under different settings: about fifteen minutes on two cores, five of them for compiling. Needs MIM_DATA_DIR and the extra minilm.
set -euo pipefail
cd "$(dirname "$0")/../.."
RECORD=experiments/step_speed
step() { # <name> <arguments>
  .venv/bin/python benchmarks/step.py "${@:2}" --output "$RECORD/$1.json" > "$RECORD/$1.md"
}
step train --rounds 8 --arm "memory returned to the system=reuse_memory=false" --arm "memory kept=" \
  --arm "kept, huge pages by glibc=GLIBC_TUNABLES=glibc.malloc.hugetlb=1" \
  --arm "returned, huge pages by torch=THP_MEM_ALLOC_ENABLE=1 reuse_memory=false" \
  --arm "kept, huge pages by torch=THP_MEM_ALLOC_ENABLE=1"
step text --config "experiment=grocery encoder/text=minilm" --rounds 5 --warmup 1 --batches 2 \
  --arm "padded to the longest=" --arm "four length buckets=encoder.text.length_buckets=4"
for rows in "embed 256 5" "serve 32 15" "serve 1 40"; do
  set -- $rows
  step "$1_$2" --work "$1" --config "experiment=grocery data.eval_batch_size=$2" --rounds "$3" --warmup 4 \
    --arm "memory returned to the system=reuse_memory=false" --arm "memory kept="
done
step compiled --config "data=grocery encoder=tiny data.batch_size=64" --warmup 2 --arm "eager=" --arm "compiled=model.compile=true"
.venv/bin/python experiments/refresh.py
