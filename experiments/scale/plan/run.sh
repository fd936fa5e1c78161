#!/usr/bin/env bash
# The plan of a catalog, by arithmetic on the records: seconds.
set -euo pipefail
cd "$(dirname "$0")/../../.."
.venv/bin/python -m benchmarks.scaling --output experiments/scale/plan
.venv/bin/python experiments/refresh.py
