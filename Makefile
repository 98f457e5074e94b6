# Every target does the set-up it needs: `make demo` on a fresh clone is enough.
#   make demo DEVICE=cpu|cuda     without it: cuda where nvidia-smi works
#   make demo PYTHON=python3.12   without it: the first of 3.11, 3.12, 3.13 that is there

DEVICE ?= auto
VENV ?= .venv
BIN := $(VENV)/bin

# The libraries under raydpo report nothing to their makers, unless you say so.
export RAY_USAGE_STATS_ENABLED ?= 0
export VLLM_NO_USAGE_STATS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

# Tests without a cluster run side by side.
BESIDE := --ignore=tests/integration -n auto --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-faults fuzz docs lint format lock sbom audit clean gpu-acceptance

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '  make %-14s %s\n' "$$name" "$$what"; done

setup: ## Make .venv with the locked versions (done by the others, where needed).
	@DEVICE='$(DEVICE)' PYTHON='$(PYTHON)' VENV='$(VENV)' sh requirements/install.sh

demo: setup ## Run the whole pipeline on the shipped models and show what it did.
	@$(BIN)/python jobs/demo.py

# Those that need no cluster first; then the others, two files at a time, each with a cluster of its own.
test: setup ## Run all tests, with real Ray, vLLM and train workers.
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest -m "not slow" $(BESIDE)
	@$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --show-capture log
else
	@$(BIN)/python -m pytest $(ARGS)
endif

test-fast: setup ## Run the tests that need no cluster, without the thorough ones.
	@$(BIN)/python -m pytest -m "not slow and not thorough" --ignore=tests/fuzz $(BESIDE) $(ARGS)

test-faults: setup ## Inject every fault of docs/faults.md and write each row's result there.
	@$(BIN)/python -m tests.faults.table $(ARGS)

fuzz: setup ## Feed readers, configuration and model folders with garbage; MINUTES=1 for each target.
	@RAYDPO_FUZZ_MINUTES='$(or $(MINUTES),1)' $(BIN)/python -m pytest tests/fuzz --timeout 0 -n auto --maxprocesses 4 $(ARGS)

docs: ## Build the site of the documentation in build/docs; a link that leads nowhere fails.
	@PYTHON='$(or $(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,python3))' sh docs/build.sh

gpu-acceptance: ## Compare and measure the training core on the GPU at hand; ARGS='--minutes 8'.
	@$(or $(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,python3)) jobs/gpu_acceptance.py $(ARGS)

lint: setup ## Check style, formatting and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: setup ## Format the code and mend what ruff can mend.
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lock: ## Resolve requirements/*.txt anew; UPGRADE=1 for the newest versions.
	@PYTHON='$(PYTHON)' UPGRADE='$(UPGRADE)' sh requirements/lock.sh

sbom: ## Write bills of materials of the locks (CycloneDX) to build/sbom/.
	@PYTHON='$(PYTHON)' sh requirements/audit.sh sbom

audit: ## Ask PyPI for known vulnerabilities of the locked versions.
	@PYTHON='$(PYTHON)' sh requirements/audit.sh audit

clean: ## Delete .venv and caches; runs/ stays.
	rm -rf $(VENV) build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
