#!/usr/bin/env bash
# Memory and time of an evaluation against the rows of its gallery: ten minutes on two quiet cores, 3 GiB.
# Of the code before the gallery was spread over processes: check out commit ca8cc61 beside this one, and give
#   benchmarks/validation_memory.py --source <worktree>/src --label before --output experiments/scale/validation/results.json
# (5 GiB for half a million rows).
set -euo pipefail
cd "$(dirname "$0")/../../.."
export OMP_WAIT_POLICY=PASSIVE
results=experiments/scale/validation/results.json
.venv/bin/python benchmarks/validation_memory.py --rows 100000 250000 500000 --output "$results"
.venv/bin/python benchmarks/validation_memory.py --rows 1000000 --processes 1 --output "$results"
.venv/bin/python benchmarks/validation_memory.py --dtype float16 --rows 500000 1000000 2000000 --processes 1 --output "$results"
.venv/bin/python benchmarks/validation_memory.py --dtype float16 --rows 1000000 2000000 --processes 2 --output "$results"
.venv/bin/python benchmarks/validation_memory.py --tables "$results"
.venv/bin/python experiments/refresh.py
