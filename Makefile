# `make help` lists the targets. Every target sets up what it needs.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.headrace-ready
DURATION ?=
REPORT ?=
DATASET ?=
PORT ?= 8000
SMALL ?=
# processes that run tests side by side, each with a Ray and a broker of its own
JOBS ?= 2
ATTACK ?=
# a recipe of the dataset's name, if there is one
ROBUST_SETTINGS = $(addprefix --settings ,$(wildcard docs/recipes/robust/$(notdir $(DATASET:/=)).toml))

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit test-slow bench-stream bench-soak bench-serve bench-train robustness results faults chaos-serve k8s image-test sbom format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
	  awk -F'\t' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'
	@echo "  variables: DURATION=seconds REPORT=file.json DATASET=folder ATTACK=1 PORT=8000 (demo), JOBS=2 (test), REPORT (also bench-…, faults), PYTHON, VENV"

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two, once)"
	@# torch first and from its pin: a looser requirement would bring a CUDA build of several gigabytes
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[local,avro,bench,evaluate,fast,s3,test]'
	@touch $@

demo: $(READY) ## the whole system on a recorded stream, live in this terminal
	@$(BIN)/headrace demo $(if $(DURATION),--duration $(DURATION)) $(if $(REPORT),--report $(REPORT)) \
	  $(if $(DATASET),--dataset $(DATASET)) $(if $(ATTACK),--attack) --port $(PORT)

test: lint types unit ## lint, type-check and run all tests but the slow ones

lint: $(READY) ## ruff: lint and format check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: $(READY) ## mypy, strict
	@$(BIN)/mypy

unit: $(READY) ## pytest, without the slow tests
	@$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) --dist loadfile

test-slow: $(READY) ## pytest, the slow tests only
	@$(BIN)/python -m pytest -m slow

bench-stream: $(READY) ## events per second beside Bytewax and Quix Streams, and freshness under load
	@$(BIN)/python -m tests.bench.stream $(if $(REPORT),--report $(REPORT))

bench-soak: $(READY) ## ten minutes of load: memory of every process over time
	@$(BIN)/python -m tests.bench.stream --soak 600 $(if $(REPORT),--report $(REPORT))

bench-train: $(READY) ## training targets per second beside RecBole's SASRec
	@$(BIN)/python -m tests.bench.train $(if $(REPORT),--report $(REPORT))

bench-serve: $(READY) ## milliseconds and requests per second beside an empty Serve app and plain FastAPI
	@$(BIN)/python -m tests.bench.serve --keep $(if $(REPORT),--report $(REPORT))

robustness: $(READY) ## attacks on a model with and without defences: DATASET=folder; SMALL=1 takes minutes
	@test -n "$(DATASET)" || { echo "name a dataset folder: make robustness DATASET=data/shop"; exit 1; }
	@$(BIN)/headrace robustness --dataset $(DATASET) $(ROBUST_SETTINGS) $(if $(REPORT),--report $(REPORT)) \
	  $(if $(SMALL),--seeds 0 --texts keywords --threads 1)

results: $(READY) ## rebuild docs/results.md, docs/robustness.md and the sizing table from the reports in docs/results
	@$(BIN)/python -m tests.bench.results
	@$(BIN)/python -m tests.bench.robustness
	@$(BIN)/python -m tests.bench.sizing_table

faults: $(READY) ## 50 kills and cut connections during 300,000 events: what was lost or doubled
	@$(BIN)/python -m tests.faults $(if $(REPORT),--report $(REPORT))

chaos-serve: $(READY) ## replicas, shards, broker and models fail under load: which requests failed
	@$(BIN)/python -m tests.faults.serving $(if $(REPORT),--report $(REPORT))

k8s: $(READY) ## render every Kubernetes variant and check it
	@mkdir -p build/k8s
	@for o in base overlays/dev overlays/prod; do $(BIN)/kubectl kustomize k8s/$$o > build/k8s/$${o##*/}.yaml || exit 1; done
	@$(BIN)/python -m pytest tests/k8s

image-test: $(READY) ## build the image and run it confined (root, podman, runc, mmdebstrap; minutes)
	@$(BIN)/python -m pytest -m slow -rs tests/k8s/test_image_build.py

sbom: $(READY) ## bill of materials (CycloneDX)
	@mkdir -p build && $(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-reproducible --output-file build/headrace.cdx.json

format: $(READY) ## let ruff format and fix
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

clean: ## remove the environment and everything the demo stored
	@rm -rf $(VENV) .headrace build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
