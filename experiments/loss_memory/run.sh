#!/usr/bin/env bash
# The tiled losses against a naive form with whole matrices: a quarter of an hour on two quiet cores, 8 GiB.
# Arguments go to the benchmark; --help names them. On a GPU: benchmarks/loss.py --device cuda --output <file>.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=PASSIVE
.venv/bin/python benchmarks/loss.py --output experiments/loss_memory/results.json "$@"
.venv/bin/python benchmarks/loss.py --tables experiments/loss_memory/results.json
.venv/bin/python experiments/refresh.py
