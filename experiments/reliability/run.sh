#!/usr/bin/env bash
# Is anything lost when it is killed, stopped, starved or fed rubbish?
set -euo pipefail
cd "$(dirname "$0")/../.."
MIM_CAMPAIGN_RECORD="$(mktemp)"
export MIM_CAMPAIGN_RECORD
make campaign || echo "not all of it holds: see the table"
[ -s "$MIM_CAMPAIGN_RECORD" ] || { echo "error: no outcome was recorded" >&2; exit 1; }
.venv/bin/python experiments/reliability/tables.py "$MIM_CAMPAIGN_RECORD"
.venv/bin/python experiments/refresh.py
