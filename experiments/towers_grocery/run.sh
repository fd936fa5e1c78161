#!/usr/bin/env bash
# Two, three and four towers on real grocery photos, equal budgets, three seeds: about an hour on two CPU cores.
# Needs MIM_DATA_DIR (data/grocery, weights/mobilenetv2_100.safetensors).
set -euo pipefail
cd "$(dirname "$0")/../.."
.venv/bin/python -m mim_lightning.train -m experiment=grocery seed=1,2,3 model=4tower,3tower,2tower paths.runs=runs/towers_grocery
.venv/bin/python experiments/tabulate.py experiments/towers_grocery runs/towers_grocery/*-grocery-seed*
