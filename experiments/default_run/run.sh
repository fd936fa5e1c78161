#!/usr/bin/env bash
# The results of `make train`: the synthetic shop, four towers, 25 epochs; about three minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
.venv/bin/python -m mim_lightning.train paths.runs=runs/default_run | sed -n '/ initial .*95 %/,/^results\|^finished/p' |
  grep -v '^results\|^finished' | sed -e 's/ *$//' -e '/^$/d' > experiments/default_run/table.txt
.venv/bin/python experiments/refresh.py
