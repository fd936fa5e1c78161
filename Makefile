# make train: set everything up, then the main job on the embedded default.  make test: set up, then all checks.
PYTHON ?= python3
PY := .venv/bin/python
# Container images often switch it off: every process would compile again what it imports, seconds each.
export PYTHONDONTWRITEBYTECODE :=
UV := $(or $(shell command -v uv),.uv/bin/uv)

.DEFAULT_GOAL := help
.PHONY: help setup gpu format lint types test test-slow coverage docs campaign train experiment experiments pictures tables release wheel lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

.venv/.ready: requirements.lock pyproject.toml | $(filter .uv/%,$(UV))
	$(UV) venv --quiet --allow-existing --python '>=3.11' .venv
	VIRTUAL_ENV=.venv $(UV) pip sync --quiet requirements.lock
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --editable .
	touch $@

setup: .venv/.ready ## the virtual environment, from the lock

gpu: setup ## FAISS on the GPU instead of on the CPU
	VIRTUAL_ENV=.venv $(UV) pip uninstall faiss-cpu
	VIRTUAL_ENV=.venv $(UV) pip install faiss-gpu

train: setup ## the main job: 4 towers on the synthetic shop, about three minutes on two cores
	$(PY) -m mim_lightning.train

experiment: setup ## one record of experiments/ again: make experiment NAME=towers_grocery
	experiments/$(NAME)/run.sh

RECORDS = default_run towers_synthetic warm_start fusion_weights fusions loss_weights tied_or_not encoder_size towers_grocery \
	frozen_text planted_lift clicks index_speed ranking_speed serving_speed rounded_weights same_picture data_throughput \
	world_size loss_memory step_speed train_throughput scale/engines scale/fingerprints scale/growing scale/preparation scale/processes scale/ray scale/remote \
	scale/shuffling scale/validation scale/plan reliability small_vectors hard_negatives composed_rows compatible_queries \
	teachers variants_to_words calibration titles_emoji small_catalog recipes neighbours

experiments: setup ## every record again, hours on two cores
	for name in $(RECORDS); do experiments/$$name/run.sh || exit 1; done

pictures: setup ## the pictures of the documents: drawn, and screenshots of the pages (Chromium, MIM_DATA_DIR)
	$(PY) docs/make_pipeline.py
	$(PY) docs/make_towers_figure.py
	$(PY) docs/make_contact_sheet.py docs/images/contact_sheet.webp
	$(PY) docs/make_screenshots.py

tables: setup ## the tables of experiments/ into the pages that quote them
	$(PY) experiments/refresh.py

format: setup ## format the code
	$(PY) -m ruff check --quiet --fix src tests benchmarks experiments docs .ci
	$(PY) -m ruff format --quiet src tests benchmarks experiments docs .ci

lint: setup ## style, who imports whom, and known vulnerabilities of what the lock holds
	$(PY) -m ruff check src tests benchmarks experiments docs .ci
	$(PY) -m ruff format --check src tests benchmarks experiments docs .ci
	.venv/bin/lint-imports --no-cache
	$(PY) .ci/audit.py

types: setup ## types
	$(PY) -m mypy

# Two workers of one thread each: on two cores that is faster than one process with two threads. A test that hangs is named.
# Where bytecode is switched off, every process of every test would compile all that it imports: seconds each.
test: export PYTHONDONTWRITEBYTECODE =
test: setup ## style, types and tests: about ten minutes on two cores
	$(MAKE) --jobs 2 .venv/.compiled types lint
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

# Compiles what tests import once, and not in each of the processes that start at the same time.
.venv/.compiled: .venv/.ready
	$(PY) -m pytest --collect-only -q > $@.log || { cat $@.log; exit 1; }
	mv $@.log $@

test-slow: setup ## the tests that `make test` leaves out: whole sweeps in many processes
	$(PY) -m pytest -m slow

coverage: setup ## which lines the tests run, in build/coverage: make coverage TESTS=tests/losses for some of them
	OMP_NUM_THREADS=1 $(PY) -m pytest $(TESTS) --numprocesses 2 --dist loadfile --cov --cov-report term:skip-covered --cov-report html

docs: setup ## the documentation site in build/site/html; a broken link, or code that fails, ends it
	$(PY) docs/make_site.py
	PYTHONPATH=docs .venv/bin/zensical build --clean --strict
	@echo "next: .venv/bin/python -m http.server --directory build/site/html   (the search needs a server)"

campaign: export MIM_CAMPAIGN_SEED := $(or $(MIM_CAMPAIGN_SEED),$(shell date +%s))
campaign: setup ## killed, stopped, starved and fed rubbish: is anything lost? see experiments/reliability
	@echo "MIM_CAMPAIGN_SEED=$(MIM_CAMPAIGN_SEED)"
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/campaign -m "campaign or not campaign" --numprocesses 2 --dist worksteal

release: setup ## the models to publish, exported to release/: see experiments/release.sh
	experiments/release.sh

wheel: setup ## a wheel in dist/
	$(PY) -m build --wheel --installer uv

lock: | $(filter .uv/%,$(UV)) ## resolve the dependencies anew
	$(UV) pip compile pyproject.toml --extra dev --extra clip --extra lora --extra minilm --extra tensorboard --extra sweep \
		--extra figures --extra dashboard --extra serve --extra online --extra milvus --extra onnx --extra sentence-transformers --extra datasets --extra s3 --extra ray --extra heic --extra docs --universal --no-emit-index-url --no-header --no-annotate --upgrade --quiet --output-file requirements.lock

clean: ## remove what was made, but not runs/ and data/
	rm -rf .venv .uv build dist .mypy_cache .ruff_cache .pytest_cache
