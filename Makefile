# prefloop: `make run` runs the pipeline, `make test` the tests. Everything stays inside this folder.
.DEFAULT_GOAL := help
.PHONY: help env run plan ui test test-servers soak check format clean-env

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first of these that is Python 3.11 to 3.13; `make run PYTHON=/path/to/python` overrides.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo "$$p" && break; done)

export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A run is some thirty processes, and tests are thousands: each would compile the same modules.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP)  ## make .venv from constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "prefloop needs Python 3.11, 3.12 or 3.13: make run PYTHON=/path/to/python"; exit 1; }
	@echo "making $(VENV) with $(PYTHON) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[dev,lora]'
	@$(BIN)/python -m pip check
	@$(BIN)/python -m flows.prefect_database || echo "a workspace's first run will make Prefect's database"
	@touch $(STAMP)

run: $(STAMP)  ## run the pipeline; what is unchanged is skipped. ARGS="--preset small" and the like are passed on
	@$(BIN)/prefloop run $(ARGS)

plan: $(STAMP)  ## what `make run` would do, and why
	@$(BIN)/prefloop plan $(ARGS)

ui: $(STAMP)  ## open MLflow and Prefect on what ran
	@$(BIN)/python -m flows.ui $(ARGS)

test: $(STAMP)  ## every test but those of test-servers, offline. ARGS="-m 'not slow'" leaves out the slow ones
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

test-servers: $(STAMP)  ## tests with several servers and workers, and the image's build: twenty minutes
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m servers $(ARGS)

soak: $(STAMP)  ## fifty faults in a row, nothing lost; an hour or less. ARGS="--faults 10 --seed 1" and the like are passed on
	@HF_HUB_OFFLINE=1 $(BIN)/python -m tests.soak $(ARGS)

check: $(STAMP)  ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)  ## mend what `make check` can mend by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean-env:  ## remove .venv
	rm -rf $(VENV)
