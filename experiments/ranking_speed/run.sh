#!/usr/bin/env bash
# Ranking against plain FAISS and evaluation against torchmetrics: twenty minutes on two CPU cores, 4 GiB.
# Arguments go to the benchmark; --help names them.
set -euo pipefail
cd "$(dirname "$0")/../.."
OMP_WAIT_POLICY=PASSIVE .venv/bin/python benchmarks/ranking.py "$@" | tee experiments/ranking_speed/table.txt
.venv/bin/python experiments/refresh.py
