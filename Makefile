# Two commands need nothing but Python 3.11 with pip: `make serve` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help serve test check format bench compiled test-compiled clean

help:           ## Show what there is to make
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: [^#]*##/:/'

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

# By way of the source distribution, whose copy is what gets compiled: nothing is left in src/, where it would
# shadow the Python beside it.
compiled: $(VENV)/.dev ## Build a wheel for this Python and machine with the core compiled, into dist/
	@rm -f dist/carpool-*-cp*.whl
	@rm -rf build/sdist
	@$(BIN)/python -m hatchling build --target sdist --directory build/sdist
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist build/sdist/*.tar.gz
	@ls dist/carpool-*-cp*.whl

test-compiled: compiled  ## Run the tests of what is compiled against the compiled wheel, in an environment of its own
	@rm -rf build/compiled
	@$(PYTHON) -m venv --without-pip build/compiled
	@$(PYTHON) -m pip --python build/compiled/bin/python install -qq --disable-pip-version-check \
		dist/carpool-*-cp*.whl httpx hypothesis numpy pytest
	@env -u PYTHONPATH build/compiled/bin/python -c 'import carpool.core.scheduler as s; assert s.__file__[-3:] != ".py", s'
	@env -u PYTHONPATH build/compiled/bin/python -m pytest tests/core tests/runtime tests/wire

clean:          ## Remove the virtual environment and the caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

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
