#!/usr/bin/env bash
# A lift planted in simulated experiments, and none: how often the report is right. Minutes on one CPU core.
# Arguments go to the script; --help names them.
set -euo pipefail
cd "$(dirname "$0")/../.."
${PYTHON:-.venv/bin/python} experiments/planted_lift/simulate.py experiments/planted_lift "$@"
${PYTHON:-.venv/bin/python} experiments/refresh.py
