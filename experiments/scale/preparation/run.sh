#!/usr/bin/env bash
# The memory and time of a preparation by its number of rows: 1 million rows in minutes, 50 million in hours, 40 GB of disk.
# Arguments go to the benchmark, such as --rows 100000; --baseline <src of another version> takes turns with it.
set -euo pipefail
cd "$(dirname "$0")/../../.."
.venv/bin/python benchmarks/preparation_scale.py --output experiments/scale/preparation/results.json --no-shards "$@"
.venv/bin/python experiments/refresh.py
