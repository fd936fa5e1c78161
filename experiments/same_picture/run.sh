#!/usr/bin/env bash
# Are duplicate images of a table found? Real and synthetic images: about five minutes on two cores.
# Needs MIM_DATA_DIR (data/grocery); arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/../.."
SHOP=runs/same_picture/shop
[ -e "$SHOP/products.csv" ] || .venv/bin/python -c "
from pathlib import Path
from mim_lightning.data.synthetic import write_synthetic_world
write_synthetic_world(Path('$SHOP'), train_queries_per_product=1, val_queries_per_product=1)"
.venv/bin/python benchmarks/same_picture.py "photos=${MIM_DATA_DIR:-external}/data/grocery/images" "drawn=$SHOP/images/shop" "$@" \
  > experiments/same_picture/table.md
.venv/bin/python experiments/refresh.py
