# Two commands need nothing but Python 3.11 with pip: `make serve` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help serve test check format bench clean

help:           ## Show what there is to make
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: [^#]*##/:/'

serve: $(VENV)/.serve  ## Serve the embedded model on http://127.0.0.1:3000
	@exec $(BIN)/carpool serve

test: $(VENV)/.dev     ## Run the whole test suite
	@$(BIN)/pytest

check: $(VENV)/.dev    ## Format, lint, type and layer checks
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@echo "check: format, lint, types and layers are fine"

format: $(VENV)/.dev   ## Format the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

bench: $(VENV)/.dev    ## Measure what batching gains on the embedded model
	@$(BIN)/python benchmarks/gain.py

clean:          ## Remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# pip installs into the environment from outside, so that neither ensurepip nor an activated shell is needed;
# it is in the environment as well because `carpool pull` fetches models through it.
$(BIN)/python:
	@$(PYTHON) -m venv --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python install -qq --disable-pip-version-check pip

$(VENV)/.serve: $(BIN)/python pyproject.toml
	@echo "installing carpool into $(VENV) (once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[local]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	@echo "installing carpool and its development tools into $(VENV) (once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.serve
